"""Search for hyper-parameters: what varies, who proposes, and one training per proposal."""
