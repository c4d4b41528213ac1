"""The credentials that the options of ``vdisk-nbd serve`` name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.errors import InvalidRequestError, NotFoundError
from vdisk.nbd.session import TlsMode
from vdisk.nbd_serving.tls import TlsSettings, certificates, pre_shared_keys
from vdisk.options import OptionBag, as_bool, parse_keyval

if TYPE_CHECKING:
    import argparse


def take_objects(args: argparse.Namespace) -> dict[str, dict[str, str]]:
    """The --object definitions that are about TLS, by id; ``args.object`` keeps the others."""
    found, others = {}, []
    for definition in args.object:
        properties = parse_keyval(definition, implied_key="qom-type")
        if properties.get("qom-type", "").startswith(("tls-creds-", "authz-")):
            identity = properties.pop("id", "")
            if not identity or identity in found:
                raise InvalidRequestError(f"--object {definition}: needs an id of its own")
            found[identity] = properties
        else:
            others.append(definition)
    args.object = others
    return found


def tls_settings(args: argparse.Namespace, objects: dict[str, dict[str, str]]) -> TlsSettings:
    """How the server uses TLS."""
    given = [args.tls_creds, args.tls_certificates, args.tls_psk]
    if sum(item is not None for item in given) > 1:
        raise InvalidRequestError("give one of --tls-creds, --tls-certificates and --tls-psk")
    mode = TlsMode(args.tls) if args.tls else TlsMode.REQUIRE
    if args.tls_creds is not None:
        return _from_object(_object(objects, args.tls_creds), mode)
    if args.tls_certificates is not None:
        return certificates(args.tls_certificates, verify_peer=not args.tls_no_verify, mode=mode)
    if args.tls_psk is not None:
        return pre_shared_keys(args.tls_psk, mode=mode)
    if args.tls not in (None, "off"):
        raise InvalidRequestError(f"--tls={args.tls} needs credentials: --tls-certificates")
    return TlsSettings()


def _object(objects: dict[str, dict[str, str]], identity: str) -> dict[str, str]:
    if identity not in objects:
        raise NotFoundError(f"--object defines no {identity!r}")
    return dict(objects[identity])


def _from_object(properties: dict[str, str], mode: TlsMode) -> TlsSettings:
    kind = properties.pop("qom-type")
    bag = OptionBag(properties, f"object {kind!r}")
    directory = bag.required("dir")
    if bag.string("endpoint") not in (None, "server"):
        raise InvalidRequestError("a server needs credentials with endpoint=server")
    if kind == "tls-creds-psk":
        bag.finish()
        return pre_shared_keys(directory, mode=mode)
    if kind != "tls-creds-x509":
        raise InvalidRequestError(f"{kind} has no credentials for a server")
    verify = as_bool(bag.string("verify-peer") or "on", "option 'verify-peer'")
    bag.finish()
    return certificates(directory, verify_peer=verify, mode=mode)


def access_rules(args: argparse.Namespace, objects: dict[str, dict[str, str]]) -> list[str]:
    """Who may connect: --allow, and the name of --tls-authz."""
    rules = list(args.allow)
    if args.tls_authz is not None:
        properties = _object(objects, args.tls_authz)
        kind = properties.pop("qom-type")
        if kind != "authz-simple":
            raise InvalidRequestError(f"--tls-authz takes an authz-simple object, not {kind}")
        bag = OptionBag(properties, f"object {kind!r}")
        rules.append("dn:" + bag.required("identity"))
        bag.finish()
    return rules
