"""The page that the ingress serves (plain HTML, CSS and JavaScript)."""
