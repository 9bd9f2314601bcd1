"""Who may get what. Pure: policies, asks, and the decision."""
