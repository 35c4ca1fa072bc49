"""Who is who: keys, certificates, tokens, and how a peer reaches an aggregator that wants to know.

Imports `core` and `wire` at most. The aggregator's side, which issues and checks, is `aggregator.trust`.
"""
