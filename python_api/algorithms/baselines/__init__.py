"""What H2Tune is compared with, each at as many forward-backward passes as H2Tune makes."""
