"""``biases check``: the battery for names of the zoo and for anybody's factories, on the command line."""
