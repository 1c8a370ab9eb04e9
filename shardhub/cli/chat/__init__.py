"""The parts of `shardhub chat`: typed questions, commands that begin with a slash, and wrapped answers."""
