"""What builds the documentation: hooks of the site, and the tables that are measured."""
