"""From a Docker/OCI image to a SIF: sources, digests, conversion and provenance.

:func:`~sifproof.image.source.parse` reads what the config names, :func:`~sifproof.image.source.verify` proves that it
is there, :func:`~sifproof.image.digest.digest` identifies its content, :func:`~sifproof.image.convert.convert` makes
the SIF, and :func:`~sifproof.image.engine.load_into_engine` gives the same image to the Docker engine.
"""
