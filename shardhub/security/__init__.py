"""Identity on the wire and of manifests: a cluster's authority, certificates, revocations, signatures."""
