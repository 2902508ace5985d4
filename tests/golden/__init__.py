"""Reference values, and the tests that compare the package with them."""
