//! Black-box tests of what users type, and of what the tree promises.
