"""The manifest refuses what is not declared, and says op, entry, party, expected and got."""

from __future__ import annotations

import pytest
import torch

from python_api.errors import RunFailed
from python_api.federation import Manifest, ManifestError, OpRule, Rule

SIZES = {"layers": 3, "rank": 4}
RULES = {
    "G": Rule(dtype=torch.float32, shape=("layers", None, lambda s: s["rank"] ** 2)),
    "bits": Rule(dtype=torch.uint8, shape=(None,)),
    "any": Rule(optional=True),
    "half": Rule(dtype=(torch.float16, torch.bfloat16), optional=True),
    "loss": Rule(kind="number", optional=True),
    "note": Rule(kind="text", max_bytes=5, optional=True),
    "raw": Rule(kind="bytes", max_bytes=2, optional=True),
}
MANIFEST = Manifest({"upload": OpRule(up=RULES)})
GOOD = {"G": torch.zeros(3, 7, 16), "bits": torch.zeros(2, dtype=torch.uint8)}


def refuse(payload, direction="up"):
    with pytest.raises(ManifestError) as caught:
        MANIFEST.check("upload", direction, payload, party="shop", sizes=SIZES)
    assert isinstance(caught.value, RunFailed)
    return str(caught.value)


def test_what_is_declared_passes():
    MANIFEST.check("upload", "up", GOOD, party="shop", sizes=SIZES)
    MANIFEST.check("upload", "down", {}, party="shop", sizes=SIZES)
    extra = {
        "any": torch.zeros((), dtype=torch.int64),
        "half": torch.ones(1, dtype=torch.bfloat16),
        "loss": 1,
        "note": ["ab", "cde"],
        "raw": b"12",
    }
    MANIFEST.check("upload", "up", GOOD | extra, party="shop", sizes=SIZES)


def test_a_refusal_names_op_entry_party_expected_and_got():
    assert refuse({**GOOD, "G": torch.zeros(3, 7, 15)}) == (
        "op 'upload' up, entry 'G', party 'shop': "
        "expected float32 of shape (3, any, 16), got float32 of shape (3, 7, 15)"
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"W": torch.zeros(2)}, "entry 'W', party 'shop': expected no such entry (declared: G,"),
        ({"G": torch.zeros(3, 7, 16).double()}, "got float64 of shape (3, 7, 16)"),
        ({"G": torch.zeros(3, 16)}, "got float32 of shape (3, 16)"),
        ({"G": torch.zeros(2, 7, 16)}, "got float32 of shape (2, 7, 16)"),
        ({"G": "text"}, "got text of 4 characters"),
        ({"G": [1.0]}, "got list"),
        ({"bits": torch.zeros(2, dtype=torch.bool)}, "expected uint8 of shape (any,), got bool"),
        ({"half": torch.zeros(1)}, "expected float16 or bfloat16, got float32"),
        ({"loss": float("nan")}, "expected a finite number, got nan"),
        ({"loss": "0.5"}, "expected a number, got text"),
        ({"loss": torch.tensor(0.5)}, "expected a number, got float32 of shape ()"),
        ({"note": "123456"}, "expected at most 5 bytes, got 6"),
        ({"note": ["ééé"]}, "expected at most 5 bytes, got 6"),
        ({"note": ["a", 1]}, "expected text, got list"),
        ({"raw": b"123"}, "expected at most 2 bytes, got 3"),
        ({"raw": "12"}, "expected bytes, got text"),
    ],
)
def test_what_is_not_declared_is_refused(change, words):
    assert words in refuse(GOOD | change)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_one_value_that_is_not_finite_is_refused(bad, dtype):
    value = torch.zeros(100, dtype=dtype)
    value[57] = bad
    assert "expected finite values, got 1 NaN or infinite of 100" in refuse(GOOD | {"any": value})


def test_a_missing_entry_is_refused_and_an_optional_one_is_not():
    assert "entry 'bits', party 'shop': expected uint8 of shape (any,), got nothing" in refuse(
        {"G": GOOD["G"]}
    )


def test_both_ways():
    assert "op 'upload' down, entry 'G'" in refuse({"G": GOOD["G"]}, direction="down")
    assert "(declared: none)" in refuse({"x": 1}, direction="down")


def test_an_op_that_is_not_declared_is_refused():
    with pytest.raises(ManifestError, match="op 'steal': expected one of upload"):
        MANIFEST.check("steal", "up", {}, party="shop", sizes=SIZES)


def test_a_payload_that_is_no_dict_is_refused():
    assert "expected a dict of entries, got list" in refuse([1])
    assert "expected a dict of entries, got nothing" in refuse(None)


def test_a_size_that_no_party_declared_is_named():
    with pytest.raises(ManifestError, match="size 'layers': the party declared rank"):
        MANIFEST.check("upload", "up", GOOD, party="shop", sizes={"rank": 4})


def test_nan_may_pass_where_the_rule_says_so():
    assert Rule(finite=False).why_not(torch.tensor(float("nan")), {}) is None


def test_rules_that_mean_nothing_are_refused_when_they_are_written():
    with pytest.raises(ValueError, match="kind must be one of"):
        Rule(kind="pickle")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="treatment must be 'plain'"):
        Rule(treatment="noise")
    with pytest.raises(ValueError, match="belong to a tensor"):
        Rule(kind="text", shape=(2,))
    for op in ("__init__", "_private", "Upload", "a.b", ""):
        with pytest.raises(ValueError, match="lower-case method name"):
            Manifest({op: OpRule()})


def test_rows_list_everything_that_may_travel():
    rows = MANIFEST.rows()
    assert [row["entry"] for row in rows] == list(RULES)
    assert rows[0] == {
        "op": "upload",
        "direction": "up",
        "entry": "G",
        "kind": "tensor",
        "dtype": "float32",
        "shape": "(layers, any, by party)",
        "finite": True,
        "optional": False,
        "treatment": "plain",
    }
