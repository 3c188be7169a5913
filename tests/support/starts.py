"""How the attention modules start to learn."""

# steps after which each parameter has had a gradient, where the published start has zeros; otherwise the first
STEPS = {"gc": 2, "gct": 2, "srm": 2}
# parameters that the published module has although its result does not depend on them
IDLE = {"gc": {"mask.bias"}}
