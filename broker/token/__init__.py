"""The token: what it says, when it is good, and what kills it. Pure; shared by server and SDK."""
