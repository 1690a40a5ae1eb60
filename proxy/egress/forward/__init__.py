"""The way out for adapters that must reach a chat service: an HTTP proxy of the listed hosts.

Two ways through it. CONNECT is a tunnel whose end-to-end encryption is kept: host and port are
checked, and the name in the TLS handshake. A request with an absolute URI is opened: method and
path are checked, secrets masked, the credential put in, and TLS spoken by the proxy.
`connection.py` has the order of events.
"""
