"""Who is let in: the authority, tokens and certificates issued, checks of every call, the audit log."""
