"""The commands of `alignez`, one module a group. Heavy packages are imported by the command that needs them."""
