"""The reference policy: scored once, cached, exchanged, or run live."""
