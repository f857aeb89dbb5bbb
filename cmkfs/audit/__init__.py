"""The audit log: records, their HMAC chain, the files they are in, and who is alarmed (docs/audit.md)."""
