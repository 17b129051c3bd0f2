"""How fast edgecal is on ARM, as far as it can be known without a device: counted, analyzed and predicted, not timed.

`python -m bench.arm --help` says what each part does; docs/arm.md has what was found.
"""
