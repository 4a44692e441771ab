"""The evidence of an algorithm, by one command each: settings times rows times seeds."""
