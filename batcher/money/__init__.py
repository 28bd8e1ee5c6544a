"""What a reply used, what that costs, and the most that a request can cost, in exact integers."""
