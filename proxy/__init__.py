"""The two proxies: ``egress`` (to models, with the keys), ``ingress`` (from clients, the gateway).

Both run in their own sandbox with no network of their own; every socket is handed to them.
"""
