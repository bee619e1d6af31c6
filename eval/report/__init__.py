"""The leaderboard as a table and as a page."""
