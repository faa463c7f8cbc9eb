"""Apple's tools on packages for Core ML and on graphs of target coreml."""
