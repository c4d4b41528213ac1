"""LUKS1: the parts of an encrypted volume, for the ``luks`` format and for encrypted qcow2.

==================  ===========================================================================
``header``          the 592 bytes that describe the volume, and the rules they must keep
``antiforensic``    spreading a key over stripes that are worthless unless all of them survive
``specification``   names of ciphers, modes, IV generators and hashes; the packages they need
``ciphers``         whole runs of 512-byte sectors, encrypted and decrypted
``keyslots``        from a passphrase to the master key: unlock, add, erase
``options``         what ``create`` and ``amend`` take; ``requests``: carrying it out
``view``            a device of plain bytes over a device of encrypted ones
==================  ===========================================================================

The master key is random and encrypts the data.  It is stored up to eight times, each time
encrypted with a key derived from another passphrase::

    passphrase --PBKDF2(salt, iterations)--> slot key --decrypts--> stripes --merge--> master key

Everything here needs the extra ``crypto``; reading a header does not.
"""
