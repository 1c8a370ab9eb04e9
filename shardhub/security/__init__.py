"""Who is who on the wire, and whose manifest it is: a cluster's authority, certificates, revocations, signatures."""
