"""The credentials that the options of ``vdisk-nbd serve`` name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.errors import InvalidRequestError, NotFoundError
from vdisk.nbd.session import TlsMode
from vdisk.nbd_serving.tls import TlsSettings, certificates, pre_shared_keys
from vdisk.options import OptionBag, split_secrets
from vdisk.tls import password_of_key

if TYPE_CHECKING:
    import argparse

    from vdisk.options import Secrets


AUTHORIZATIONS = ("authz-simple",)
"""Types of objects, beside secrets and credentials, that a server takes."""


def tls_settings(args: argparse.Namespace, objects: Secrets) -> TlsSettings:
    """How the server uses TLS."""
    given = [args.tls_creds, args.tls_certificates, args.tls_psk]
    if sum(item is not None for item in given) > 1:
        raise InvalidRequestError("give one of --tls-creds, --tls-certificates and --tls-psk")
    mode = TlsMode(args.tls) if args.tls else TlsMode.REQUIRE
    if args.tls_creds is not None:
        return _from_object(_object(objects, args.tls_creds), objects, mode)
    if args.tls_certificates is not None:
        return certificates(args.tls_certificates, verify_peer=not args.tls_no_verify, mode=mode)
    if args.tls_psk is not None:
        return pre_shared_keys(args.tls_psk, mode=mode)
    if args.tls not in (None, "off"):
        raise InvalidRequestError(f"--tls={args.tls} needs credentials: --tls-certificates")
    return TlsSettings()


def _object(objects: Secrets, identity: str) -> dict[str, str]:
    found = objects.get(identity)
    if found is None:
        raise NotFoundError(f"--object defines no {identity!r}")
    if isinstance(found, bytes):
        raise InvalidRequestError(f"--object {identity!r} is a secret, and no more")
    return dict(found)


def _from_object(properties: dict[str, str], objects: Secrets, mode: TlsMode) -> TlsSettings:
    kind = properties.pop("qom-type")
    if kind not in ("tls-creds-x509", "tls-creds-psk"):
        raise InvalidRequestError(f"object {kind!r} has no credentials for a server")
    bag = OptionBag(properties, f"object {kind!r}")
    bag.take("id")
    if bag.choice("endpoint", ("client", "server"), "server") != "server":
        raise InvalidRequestError("a server needs credentials with endpoint=server")
    directory = bag.required("dir")
    verify = bag.boolean("verify-peer", True)
    if kind == "tls-creds-psk":  # whose peers always prove that they have the key
        bag.finish()
        return pre_shared_keys(directory, mode=mode)
    bag.boolean("sanity-check", True)
    password = password_of_key(bag, split_secrets(objects)[0])
    bag.finish()
    return certificates(directory, verify_peer=verify, password=password, mode=mode)


def access_rules(args: argparse.Namespace, objects: Secrets) -> list[str]:
    """Who may connect: --allow, and the name of --tls-authz."""
    rules = list(args.allow)
    if args.tls_authz is not None:
        properties = _object(objects, args.tls_authz)
        kind = properties.pop("qom-type")
        if kind != "authz-simple":
            raise InvalidRequestError(f"--tls-authz takes an authz-simple object, not {kind}")
        bag = OptionBag(properties, f"object {kind!r}")
        bag.take("id")
        rules.append("dn:" + bag.required("identity"))
        bag.finish()
    return rules
