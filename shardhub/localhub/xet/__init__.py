"""Uploads over Xet, the client's default: chunks of files arrive packed in xorbs, then lists of files made of them.

Source of the formats and calls: the Xet protocol's specification and xet-core 1.8.0.
"""
