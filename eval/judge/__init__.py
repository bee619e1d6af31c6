"""People judge answers without knowing whose they are: the page that they are sent, and the votes that come back."""
