"""The bundle, and recommendations made from it in two stages."""
