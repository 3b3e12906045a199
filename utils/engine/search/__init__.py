"""The search for hyper-parameters: what may vary, who proposes, and how a proposal is tried."""
