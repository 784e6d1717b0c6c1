"""The interactive viewer: a scan and its label maps in the browser, served on this machine or as one HTML file."""
