"""The adapters, calibrations and the dialogue of `edgecal demo`; README.md says what they are, and their licences."""
