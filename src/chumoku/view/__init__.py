"""Views: a scene is what is drawn, and each view draws the same scene in its own way."""
