//! Each rule of trust broken alone, with everything else in order: refused, for its own reason.

use cms::{
    cert::{CertificateChoices, OtherCertificateFormat},
    content_info::{CmsVersion, ContentInfo},
    revocation::RevocationInfoChoices,
    signed_data::{SignedData, SignerIdentifier, SignerInfo, SignerInfos},
};
use const_oid::db::rfc5911::{
    ID_CONTENT_TYPE, ID_DATA, ID_ENCRYPTED_DATA, ID_MESSAGE_DIGEST, ID_SIGNED_DATA, ID_SIGNING_TIME,
};
use cutover_core::model::Instant;
use der::{
    Decode, Encode,
    asn1::{Any, ObjectIdentifier, OctetString, SetOfVec},
};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, RsaKeySize, SignatureAlgorithm,
};
use x509_cert::{
    attr::{Attribute, Attributes},
    ext::pkix::SubjectKeyIdentifier,
    spki::AlgorithmIdentifierOwned,
};

use super::{
    ProfileError, RevocationLists, TrustError,
    profile::{self, identifier},
    sign, sign_manifest, verify,
};
use crate::{
    Limits,
    anchor::{RevocationPolicy, TrustAnchor},
    cosign_manifest,
    pki::{Authority, Issued, Validity},
    signer::{CertificateChain, FileSigner, Signer},
};

const MANIFEST: &[u8] = b"{\"format\": 1}\n";
const SHA_1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.14.3.2.26");
/// id-aa-timeStampToken of RFC 3161.
const TIMESTAMP_TOKEN: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.16.2.14");
const MD5: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.2.5");
const SHA_1_WITH_RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.5");
const RSA_PSS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.10");

fn now() -> Instant {
    "2026-03-01T12:00:00Z".parse().expect("a time")
}

fn after(days: i64) -> Instant {
    Instant::from_unix(now().unix() + days * 86_400).expect("in range")
}

fn validity(from_days: i64, to_days: i64) -> Validity {
    Validity { not_before: after(from_days), not_after: after(to_days) }
}

fn year() -> Validity {
    validity(-1, 365)
}

fn root() -> Authority {
    Authority::root("Example", year()).expect("a root")
}

fn anchor(root: &Authority) -> TrustAnchor {
    TrustAnchor::parse(root.certificate_pem().as_bytes()).expect("an anchor")
}

fn file_signer(issued: &Issued) -> FileSigner {
    let chain = CertificateChain::from_pem(issued.certificate_pem.as_bytes()).expect("a chain");
    FileSigner::from_pem(issued.key_pem.as_bytes(), chain).expect("a key")
}

fn signer(root: &Authority, name: &str) -> FileSigner {
    file_signer(&root.issue_signer("Example", name, year()).expect("a signer"))
}

fn check(signature: &[u8], anchor: &TrustAnchor) -> Result<Vec<super::SignedBy>, TrustError> {
    check_with(signature, anchor, &RevocationLists::none(), now())
}

fn check_with(
    signature: &[u8],
    anchor: &TrustAnchor,
    lists: &RevocationLists,
    now: Instant,
) -> Result<Vec<super::SignedBy>, TrustError> {
    verify(MANIFEST, signature, anchor, lists, now, &Limits::default())
}

/// Signs without asking whether anybody would accept it.
fn forge(signers: &[&dyn Signer]) -> Vec<u8> {
    let mut signed_data = sign::empty();
    for signer in signers {
        sign::add(&mut signed_data, MANIFEST, *signer, now()).expect("signed");
    }
    profile::to_bytes(&signed_data).expect("encoded")
}

/// A signature by `signer`, taken apart, edited, and put together again without a new signature.
fn edited(signer: &dyn Signer, edit: impl FnOnce(&mut SignedData)) -> Vec<u8> {
    let bytes = forge(&[signer]);
    let outer = ContentInfo::from_der(&bytes).expect("ours");
    let mut signed_data: SignedData = outer.content.decode_as().expect("ours");
    edit(&mut signed_data);
    profile::to_bytes(&signed_data).expect("encoded")
}

fn edit_signer(signed_data: &mut SignedData, edit: impl FnOnce(&mut SignerInfo)) {
    let mut info = signed_data.signer_infos.0.as_slice()[0].clone();
    edit(&mut info);
    let mut infos = SetOfVec::new();
    infos.insert(info).expect("one");
    signed_data.signer_infos = SignerInfos(infos);
}

/// As [`edited`], but the attributes are signed again after the edit: a signer who breaks the rules.
fn resigned(signer: &dyn Signer, edit: impl FnOnce(&mut Vec<Attribute>)) -> Vec<u8> {
    edited(signer, |signed_data| {
        edit_signer(signed_data, |info| {
            let mut attributes = info.signed_attrs.take().expect("ours").into_vec();
            edit(&mut attributes);
            let attributes = Attributes::from_iter(attributes).expect("a set");
            let signature = signer.sign(&attributes.to_der().expect("DER")).expect("signed");
            info.signature = OctetString::new(signature).expect("short");
            info.signed_attrs = Some(attributes);
        });
    })
}

fn attribute(oid: ObjectIdentifier, values: &[Any]) -> Attribute {
    Attribute { oid, values: SetOfVec::from_iter(values.iter().cloned()).expect("a set") }
}

fn octets(bytes: &[u8]) -> Any {
    Any::encode_from(&OctetString::new(bytes).expect("short")).expect("DER")
}

fn profile_error(signature: &[u8], anchor: &TrustAnchor) -> ProfileError {
    match check(signature, anchor) {
        Err(TrustError::Profile(error)) => error,
        other => panic!("not refused by the profile: {other:?}"),
    }
}

/// A leaf that may differ from what [`Authority::issue_signer`] makes.
fn odd_leaf(
    root: &Authority,
    algorithm: &'static SignatureAlgorithm,
    edit: impl FnOnce(&mut CertificateParams),
) -> FileSigner {
    odd_leaf_for(root, KeyPair::generate_for(algorithm).expect("a key"), edit)
}

fn odd_leaf_for(root: &Authority, key: KeyPair, edit: impl FnOnce(&mut CertificateParams)) -> FileSigner {
    let issuer_key = KeyPair::from_pem(root.key_pem()).expect("ours");
    let issuer = Issuer::from_ca_cert_pem(root.certificate_pem(), issuer_key).expect("ours");
    let mut params = code_signing("Odd");
    edit(&mut params);
    let certificate = params.signed_by(&key, &issuer).expect("a certificate");
    file_signer(&Issued {
        certificate_pem: certificate.pem(),
        key_pem: zeroize::Zeroizing::new(key.serialize_pem()),
    })
}

fn code_signing(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = rcgen::date_time_ymd(2026, 1, 1);
    params.not_after = rcgen::date_time_ymd(2027, 1, 1);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
    params
}

#[test]
fn signature_by_a_trusted_signer_is_accepted_with_its_names() {
    let root = root();
    let signature = sign_manifest(MANIFEST, &[&signer(&root, "Alice")], now()).expect("signed");
    let signers = check(&signature, &anchor(&root)).expect("trusted");
    assert_eq!(signers.len(), 1);
    assert_eq!(signers[0].subject, "CN=Alice,O=Example");
    assert_eq!(signers[0].issuer, "CN=Release Root,O=Example");
    assert_eq!(signers[0].claimed_time, Some(now()));
}

#[test]
fn every_accepted_kind_of_key_signs_and_verifies() {
    let root = root();
    let rsa = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_3072).expect("a key");
    for signer in [
        odd_leaf(&root, &rcgen::PKCS_ECDSA_P256_SHA256, |_| {}),
        odd_leaf(&root, &rcgen::PKCS_ECDSA_P384_SHA384, |_| {}),
        odd_leaf(&root, &rcgen::PKCS_ED25519, |_| {}),
        odd_leaf_for(&root, rsa, |_| {}),
    ] {
        let scheme = signer.chain().scheme();
        let signature = sign_manifest(MANIFEST, &[&signer], now()).expect("signed");
        check(&signature, &anchor(&root)).unwrap_or_else(|error| panic!("{scheme:?}: {error}"));
    }
}

/// Flips every bit of `signature` in turn.
fn assert_no_bit_can_change(signature: &[u8], anchor: &TrustAnchor) {
    check(signature, anchor).expect("good before");
    let mut altered = signature.to_vec();
    let mut accepted = Vec::new();
    for bit in 0..signature.len() * 8 {
        altered[bit / 8] ^= 1 << (bit % 8);
        if check(&altered, anchor).is_ok() {
            accepted.push(bit);
        }
        altered[bit / 8] ^= 1 << (bit % 8);
    }
    assert!(accepted.is_empty(), "flipped bits that were accepted: {accepted:?}");
}

// M8, CRATES trap 2
#[test]
fn no_bit_of_a_p256_signature_with_an_authority_in_it_can_change() {
    let root = root();
    let below = root.subordinate("Example", "Release Authority", year()).expect("an authority");
    let signature = sign_manifest(MANIFEST, &[&signer(&below, "Alice")], now()).expect("signed");
    assert_no_bit_can_change(&signature, &anchor(&root));
}

// M8
#[test]
fn no_bit_of_an_rsa_signature_can_change() {
    let root = root();
    let key = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_3072).expect("a key");
    let signature = forge(&[&odd_leaf_for(&root, key, |_| {})]);
    assert_no_bit_can_change(&signature, &anchor(&root));
}

// M8; two digest algorithms in one file: a bit can turn one into the other.
#[test]
fn no_bit_of_an_ed25519_or_twofold_signature_can_change() {
    let root = root();
    let odd = odd_leaf(&root, &rcgen::PKCS_ED25519, |_| {});
    assert_no_bit_can_change(&forge(&[&odd]), &anchor(&root));
    let two = anchor(&root).with_threshold(2).expect("a threshold");
    assert_no_bit_can_change(&forge(&[&odd, &signer(&root, "Alice")]), &two);
}

// M8
#[test]
fn altered_manifest_is_refused_wherever_the_bit_is() {
    let root = root();
    let (anchor, signature) = (anchor(&root), forge(&[&signer(&root, "Alice")]));
    let mut altered = MANIFEST.to_vec();
    for bit in 0..altered.len() * 8 {
        altered[bit / 8] ^= 1 << (bit % 8);
        let result =
            verify(&altered, &signature, &anchor, &RevocationLists::none(), now(), &Limits::default());
        assert_eq!(result, Err(TrustError::ManifestAltered));
        altered[bit / 8] ^= 1 << (bit % 8);
    }
}

// M7
#[test]
fn empty_signature_and_zero_signers_are_refused() {
    let root = root();
    assert_eq!(check(b"", &anchor(&root)), Err(TrustError::NoSignature));
    let nobody = edited(&signer(&root, "Alice"), |signed_data| {
        signed_data.signer_infos = SignerInfos(SetOfVec::new());
        signed_data.digest_algorithms = SetOfVec::new();
        signed_data.certificates = None;
    });
    assert!(matches!(check(&nobody, &anchor(&root)), Err(TrustError::SignerCount { found: 0, .. })));
}

#[test]
fn truncated_extended_and_doubled_signatures_are_refused() {
    let root = root();
    let (anchor, signature) = (anchor(&root), forge(&[&signer(&root, "Alice")]));
    for length in 0..signature.len() {
        assert!(check(&signature[..length], &anchor).is_err(), "{length} bytes");
    }
    for tail in [&[0][..], &[0x30, 0][..], &signature] {
        let longer = [signature.as_slice(), tail].concat();
        assert!(matches!(profile_error(&longer, &anchor), ProfileError::Encoding(_)));
    }
}

#[test]
fn encodings_other_than_der_are_refused() {
    let root = root();
    let (anchor, signature) = (anchor(&root), forge(&[&signer(&root, "Alice")]));
    // The outer length in three bytes instead of two: 30 82 xx xx -> 30 83 00 xx xx.
    assert_eq!(signature[..2], [0x30, 0x82]);
    let mut long = signature.clone();
    long.splice(1..2, [0x83, 0]);
    assert!(matches!(profile_error(&long, &anchor), ProfileError::Encoding(_)));
    // Indefinite length, ended by two zero bytes.
    let mut indefinite = [&[0x30, 0x80], &signature[4..]].concat();
    indefinite.extend([0, 0]);
    assert!(matches!(profile_error(&indefinite, &anchor), ProfileError::Encoding(_)));
}

#[test]
fn unsorted_sets_are_refused() {
    let root = root();
    let two = anchor(&root).with_threshold(2).expect("a threshold");
    let signature = forge(&[&signer(&root, "Alice"), &signer(&root, "Bob")]);
    check(&signature, &two).expect("sorted");
    let outer = ContentInfo::from_der(&signature).expect("ours");
    let signed_data: SignedData = outer.content.decode_as().expect("ours");
    let parts: Vec<Vec<u8>> =
        signed_data.signer_infos.0.iter().map(|info| info.to_der().expect("DER")).collect();
    let together = parts.concat();
    let at = signature
        .windows(together.len())
        .position(|window| window == together)
        .expect("both signers side by side");
    let mut swapped = signature.clone();
    swapped[at..at + together.len()].copy_from_slice(&[parts[1].clone(), parts[0].clone()].concat());
    assert_eq!(profile_error(&swapped, &two), ProfileError::Encoding("not canonical".to_owned()));
}

// M5
#[test]
fn each_departure_from_the_profile_has_its_own_reason() {
    let root = root();
    let anchor = anchor(&root);
    let alice = signer(&root, "Alice");
    let bob = signer(&root, "Bob");
    let certificate = |signer: &FileSigner| {
        CertificateChoices::Certificate(signer.chain().certificates().next().expect("a leaf").parsed.clone())
    };
    type Edit<'a> = Box<dyn FnOnce(&mut SignedData) + 'a>;
    let cases: Vec<(ProfileError, Edit<'_>)> = vec![
        (ProfileError::Version, Box::new(|data| data.version = CmsVersion::V3)),
        (ProfileError::Version, Box::new(|data| edit_signer(data, |info| info.version = CmsVersion::V3))),
        (ProfileError::ContentType, Box::new(|data| data.encap_content_info.econtent_type = ID_SIGNED_DATA)),
        (
            ProfileError::NotDetached,
            Box::new(|data| data.encap_content_info.econtent = Some(octets(MANIFEST))),
        ),
        (
            ProfileError::RevocationListsInside,
            Box::new(|data| data.crls = Some(RevocationInfoChoices(SetOfVec::new()))),
        ),
        (
            ProfileError::CertificateKind,
            Box::new(|data| {
                let other = OtherCertificateFormat { other_cert_format: ID_DATA, other_cert: Any::null() };
                let certificates = &mut data.certificates.as_mut().expect("ours").0;
                certificates.insert(CertificateChoices::Other(other)).expect("distinct");
            }),
        ),
        (
            ProfileError::CertificateUnused("CN=Bob,O=Example".to_owned()),
            Box::new(|data| {
                let certificates = &mut data.certificates.as_mut().expect("ours").0;
                certificates.insert(certificate(&bob)).expect("distinct");
            }),
        ),
        (ProfileError::SignerCertificateMissing, Box::new(|data| data.certificates = None)),
        (
            ProfileError::SignerIdentifier,
            Box::new(|data| {
                edit_signer(data, |info| {
                    let id = OctetString::new([1; 20]).expect("short");
                    info.sid = SignerIdentifier::SubjectKeyIdentifier(SubjectKeyIdentifier(id));
                });
            }),
        ),
        (
            ProfileError::SignerCertificateMissing,
            Box::new(|data| {
                edit_signer(data, |info| {
                    let bob = &bob.chain().certificates().next().expect("a leaf").parsed;
                    info.sid = SignerIdentifier::IssuerAndSerialNumber(identifier(bob));
                });
            }),
        ),
        (
            ProfileError::NoSignedAttributes,
            Box::new(|data| edit_signer(data, |info| info.signed_attrs = None)),
        ),
        (
            ProfileError::UnsignedAttributes,
            Box::new(|data| {
                edit_signer(data, |info| {
                    let timestamp = attribute(TIMESTAMP_TOKEN, &[octets(b"token")]);
                    info.unsigned_attrs = Some(Attributes::from_iter([timestamp]).expect("a set"));
                });
            }),
        ),
        (ProfileError::DigestAlgorithms, Box::new(|data| data.digest_algorithms = SetOfVec::new())),
        (
            ProfileError::DigestAlgorithms,
            Box::new(|data| {
                let sha_1 = AlgorithmIdentifierOwned { oid: SHA_1, parameters: None };
                data.digest_algorithms.insert(sha_1).expect("distinct");
            }),
        ),
        (
            ProfileError::DigestAlgorithms,
            Box::new(|data| {
                edit_signer(data, |info| info.digest_alg.parameters = Some(Any::null()));
            }),
        ),
        (
            ProfileError::AlgorithmMismatch,
            Box::new(|data| {
                edit_signer(data, |info| {
                    info.signature_algorithm.oid = const_oid::db::rfc5912::ECDSA_WITH_SHA_384;
                });
            }),
        ),
        (
            ProfileError::AlgorithmMismatch,
            Box::new(|data| {
                edit_signer(data, |info| {
                    info.signature_algorithm.parameters = Some(Any::null());
                });
            }),
        ),
    ];
    for (expected, edit) in cases {
        let signature = edited(&alice, edit);
        assert_eq!(profile_error(&signature, &anchor), expected);
    }

    let other = ContentInfo { content_type: ID_ENCRYPTED_DATA, content: Any::null() };
    assert_eq!(profile_error(&other.to_der().expect("DER"), &anchor), ProfileError::NotSignedData);
}

// M9
#[test]
fn signed_attributes_that_break_a_rule_are_refused_though_they_are_signed() {
    let root = root();
    let anchor = anchor(&root);
    let alice = signer(&root, "Alice");
    let without = |oid: ObjectIdentifier| {
        resigned(&alice, move |attributes| attributes.retain(|attribute| attribute.oid != oid))
    };
    let with = |attribute: Attribute| {
        resigned(&alice, move |attributes| {
            attributes.retain(|old| old.oid != attribute.oid);
            attributes.push(attribute);
        })
    };
    check(&resigned(&alice, |_| {}), &anchor).expect("unchanged attributes are fine");
    check(&without(ID_SIGNING_TIME), &anchor).expect("the signing time may be missing");

    let missing = |name| ProfileError::AttributeMissing(name);
    assert_eq!(profile_error(&without(ID_CONTENT_TYPE), &anchor), missing("contentType"));
    assert_eq!(profile_error(&without(ID_MESSAGE_DIGEST), &anchor), missing("messageDigest"));

    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, MANIFEST);
    let repeated =
        |signature: &[u8]| matches!(profile_error(signature, &anchor), ProfileError::AttributeRepeated(_));
    let good = octets(digest.as_ref());
    assert!(repeated(&with(attribute(ID_MESSAGE_DIGEST, &[good.clone(), octets(b"other")]))));
    assert!(repeated(&with(attribute(ID_MESSAGE_DIGEST, &[]))));
    assert!(repeated(&resigned(&alice, |attributes| {
        attributes.push(attribute(ID_MESSAGE_DIGEST, &[octets(b"other")]));
    })));

    let value = |name| ProfileError::AttributeValue(name);
    let wrong_type = Any::encode_from(&ID_SIGNED_DATA).expect("DER");
    assert_eq!(
        profile_error(&with(attribute(ID_CONTENT_TYPE, &[wrong_type])), &anchor),
        value("contentType")
    );
    assert_eq!(
        profile_error(&with(attribute(ID_MESSAGE_DIGEST, &[Any::null()])), &anchor),
        value("messageDigest")
    );
    assert_eq!(
        profile_error(&with(attribute(ID_SIGNING_TIME, &[Any::null()])), &anchor),
        value("signingTime")
    );
    assert!(matches!(
        profile_error(&with(attribute(ID_DATA, &[Any::null()])), &anchor),
        ProfileError::AttributeUnknown(_)
    ));

    // A valid signature over the digest of something else.
    assert_eq!(
        check(&with(attribute(ID_MESSAGE_DIGEST, &[octets(&[7; 32])])), &anchor),
        Err(TrustError::ManifestAltered)
    );
}

#[test]
fn weak_digests_signatures_and_keys_are_refused() {
    let root = root();
    let anchor = anchor(&root);
    let alice = signer(&root, "Alice");
    let weak = |signature: &[u8], word: &str| match check(signature, &anchor) {
        Err(TrustError::WeakAlgorithm { algorithm, .. }) if algorithm.contains(word) => {}
        other => panic!("{word}: {other:?}"),
    };
    for (oid, word) in [(SHA_1, "1.3.14.3.2.26"), (MD5, "1.2.840.113549.2.5")] {
        let digest = edited(&alice, |data| {
            let algorithm = AlgorithmIdentifierOwned { oid, parameters: None };
            data.digest_algorithms = SetOfVec::from_iter([algorithm.clone()]).expect("one");
            edit_signer(data, |info| info.digest_alg = algorithm);
        });
        weak(&digest, word);
    }
    for oid in [SHA_1_WITH_RSA, RSA_PSS] {
        let signature = edited(&alice, |data| {
            edit_signer(data, |info| {
                info.signature_algorithm = AlgorithmIdentifierOwned { oid, parameters: None };
            });
        });
        weak(&signature, &oid.to_string());
    }

    let small = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048).expect("a key");
    let issuer_key = KeyPair::from_pem(root.key_pem()).expect("ours");
    let issuer = Issuer::from_ca_cert_pem(root.certificate_pem(), issuer_key).expect("ours");
    let certificate = code_signing("Small").signed_by(&small, &issuer).expect("a certificate");
    let refused = CertificateChain::from_ders(&[certificate.der()]).expect_err("a weak key");
    assert!(refused.to_string().contains("2048 bits"), "{refused}");
    // The same certificate inside a signature.
    let smuggled = edited(&alice, |data| {
        let parsed = x509_cert::Certificate::from_der(certificate.der()).expect("a certificate");
        let sid = SignerIdentifier::IssuerAndSerialNumber(identifier(&parsed));
        let certificates = &mut data.certificates.as_mut().expect("ours").0;
        *certificates = SetOfVec::from_iter([CertificateChoices::Certificate(parsed)]).expect("one");
        edit_signer(data, |info| info.sid = sid);
    });
    assert!(matches!(check(&smuggled, &anchor), Err(TrustError::WeakKey { .. })));

    let mut params = code_signing("Small Root");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let small_root = params.self_signed(&small).expect("a certificate");
    assert!(TrustAnchor::parse(small_root.pem().as_bytes()).is_err());
}

// M8
#[test]
fn signer_of_an_unknown_authority_is_untrusted_even_under_a_known_name() {
    let (ours, theirs) = (root(), root());
    let signature = forge(&[&signer(&theirs, "Mallory")]);
    assert_eq!(
        check(&signature, &anchor(&ours)),
        Err(TrustError::Untrusted {
            subject: "CN=Mallory,O=Example".to_owned(),
            issuer: "CN=Release Root,O=Example".to_owned()
        })
    );
    let stranger = Authority::root("Stranger", year()).expect("a root");
    assert!(matches!(
        check(&forge(&[&signer(&stranger, "Mallory")]), &anchor(&ours)),
        Err(TrustError::Untrusted { issuer, .. }) if issuer.contains("Stranger")
    ));
}

// M8
#[test]
fn certificate_out_of_its_time_is_refused_whenever_it_was_used() {
    let root = Authority::root("Example", validity(-100, 1000)).expect("a root");
    let anchor = anchor(&root);
    let alice = signer(&root, "Alice");
    // Signed while the certificate was valid; the claimed time rescues nothing.
    let signature = sign_manifest(MANIFEST, &[&alice], now()).expect("signed");
    let at = |now| check_with(&signature, &anchor, &RevocationLists::none(), now);
    at(now()).expect("valid now");
    at(after(365)).expect("valid in its last second");
    assert!(matches!(
        at(Instant::from_unix(after(365).unix() + 1).expect("in range")),
        Err(TrustError::Expired { .. })
    ));
    assert!(matches!(at(after(-2)), Err(TrustError::NotYetValid { .. })));
    assert_eq!(
        at(Instant::from_unix(-1).expect("in range")).map_err(|error| error.code()),
        Err("trust.clock")
    );
    assert!(sign_manifest(MANIFEST, &[&alice], after(366)).is_err(), "signing too late");
}

#[test]
fn outdated_root_vouches_for_nothing() {
    let root = Authority::root("Example", validity(-10, 10)).expect("a root");
    let signature = forge(&[&signer(&root, "Alice")]);
    let result = check_with(&signature, &anchor(&root), &RevocationLists::none(), after(11));
    assert!(
        matches!(&result, Err(TrustError::Expired { subject, .. }) if subject.contains("Release Root")),
        "{result:?}"
    );
}

// M8, CRATES trap 1
#[test]
fn certificate_for_another_use_is_refused() {
    let root = root();
    let anchor = anchor(&root);
    let refused = |edit: fn(&mut CertificateParams)| {
        let odd = odd_leaf(&root, &rcgen::PKCS_ECDSA_P256_SHA256, edit);
        assert!(sign_manifest(MANIFEST, &[&odd], now()).is_err(), "made a useless signature");
        match check(&forge(&[&odd]), &anchor) {
            Err(TrustError::WrongUsage { missing, .. }) => missing,
            other => panic!("{other:?}"),
        }
    };
    assert!(refused(|params| params.extended_key_usages = Vec::new()).contains("codeSigning"));
    assert!(
        refused(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth])
            .contains("codeSigning")
    );
    assert!(
        refused(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any])
            .contains("codeSigning")
    );
    assert!(refused(|params| params.key_usages = Vec::new()).contains("digitalSignature"));
    assert!(
        refused(|params| params.key_usages = vec![KeyUsagePurpose::KeyEncipherment])
            .contains("digitalSignature")
    );
    assert!(
        refused(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)).contains("end entity")
    );
    let both = odd_leaf(&root, &rcgen::PKCS_ECDSA_P256_SHA256, |params| {
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::EmailProtection, ExtendedKeyUsagePurpose::CodeSigning];
    });
    check(&forge(&[&both]), &anchor).expect("one of two purposes is enough");
}

// CRATES trap 1
#[test]
fn authority_without_purposes_may_issue_signers() {
    let root = root();
    let below = root.subordinate("Example", "Release Authority", year()).expect("an authority");
    let signature = sign_manifest(MANIFEST, &[&signer(&below, "Alice")], now()).expect("signed");
    check(&signature, &anchor(&root)).expect("a path over an authority");
    // Without the authority's certificate there is no path.
    let alone = edited(&signer(&below, "Alice"), |data| {
        let certificates = &mut data.certificates.as_mut().expect("ours").0;
        let leaf = certificates
            .iter()
            .find(|choice| matches!(choice, CertificateChoices::Certificate(c) if c.tbs_certificate().subject().to_string().contains("Alice")))
            .expect("the leaf")
            .clone();
        *certificates = SetOfVec::from_iter([leaf]).expect("one");
    });
    assert!(matches!(check(&alone, &anchor(&root)), Err(TrustError::Untrusted { .. })));
}

#[test]
fn path_longer_than_its_authorities_allow_is_refused() {
    let root = root();
    let first = root.subordinate("Example", "First", year()).expect("an authority");
    let second = first.subordinate("Example", "Second", year()).expect("an authority");
    let signature = forge(&[&signer(&second, "Alice")]);
    assert!(matches!(check(&signature, &anchor(&root)), Err(TrustError::PathLength { .. })));
    // The anchor's own path length counts as well.
    let direct = TrustAnchor::parse(first.certificate_pem().as_bytes()).expect("an anchor");
    let signature = forge(&[&signer(&second, "Alice")]);
    assert!(matches!(
        check(&signature, &direct),
        Err(TrustError::Profile(_) | TrustError::PathLength { .. })
    ));
}

#[test]
fn end_entity_cannot_issue_signers() {
    let root = root();
    let issued = root.issue_signer("Example", "Alice", year()).expect("a signer");
    let key = KeyPair::from_pem(&issued.key_pem).expect("ours");
    let issuer = Issuer::from_ca_cert_pem(&issued.certificate_pem, key).expect("ours");
    let mallory_key = KeyPair::generate().expect("a key");
    let mallory = code_signing("Mallory").signed_by(&mallory_key, &issuer).expect("a certificate");
    let signer = file_signer(&Issued {
        certificate_pem: mallory.pem() + &issued.certificate_pem,
        key_pem: zeroize::Zeroizing::new(mallory_key.serialize_pem()),
    });
    assert!(matches!(check(&forge(&[&signer]), &anchor(&root)), Err(TrustError::WrongUsage { .. })));
}

#[test]
fn root_in_the_signature_is_refused_since_nothing_protects_it() {
    let root = root();
    let alice = signer(&root, "Alice");
    let der = anchor(&root).authorities().next().expect("a root").certificate.parsed.clone();
    let signature = edited(&alice, |data| {
        let certificates = &mut data.certificates.as_mut().expect("ours").0;
        certificates.insert(CertificateChoices::Certificate(der)).expect("distinct");
    });
    assert!(matches!(
        profile_error(&signature, &anchor(&root)),
        ProfileError::CertificateUnused(subject) if subject.contains("Release Root")
    ));
}

#[test]
fn one_signer_or_the_threshold_of_distinct_keys() {
    let root = root();
    let one = anchor(&root);
    let two = anchor(&root).with_threshold(2).expect("a threshold");
    let (alice, bob, carol) = (signer(&root, "Alice"), signer(&root, "Bob"), signer(&root, "Carol"));
    let count = |signature: &[u8], anchor: &TrustAnchor| match check(signature, anchor) {
        Err(TrustError::SignerCount { found, .. }) => found,
        other => panic!("{other:?}"),
    };
    assert_eq!(count(&forge(&[&alice, &bob]), &one), 2);
    assert_eq!(count(&forge(&[&alice]), &two), 1);
    assert_eq!(check(&forge(&[&alice, &bob]), &two).expect("two").len(), 2);
    assert_eq!(check(&forge(&[&alice, &bob, &carol]), &two).expect("three").len(), 3);

    let stranger = signer(&Authority::root("Stranger", year()).expect("a root"), "Mallory");
    assert!(
        matches!(check(&forge(&[&alice, &bob, &stranger]), &two), Err(TrustError::Untrusted { .. })),
        "an untrusted third signer spoils the signature"
    );
}

#[test]
fn two_certificates_of_one_key_are_one_signer() {
    let root = root();
    let two = anchor(&root).with_threshold(2).expect("a threshold");
    let key = KeyPair::generate().expect("a key");
    let named = |name: &str| {
        let chain = root.certify_signer("Example", name, year(), &key).expect("a certificate");
        file_signer(&Issued { certificate_pem: chain, key_pem: zeroize::Zeroizing::new(key.serialize_pem()) })
    };
    let (first, second) = (named("Alice"), named("Also Alice"));
    assert!(matches!(check(&forge(&[&first, &second]), &two), Err(TrustError::SameKey { .. })));
    assert!(sign_manifest(MANIFEST, &[&first, &second], now()).is_err());
    // The same certificate twice, with two different signatures.
    assert!(matches!(check(&forge(&[&first, &first]), &two), Err(TrustError::SameKey { .. })));
}

#[test]
fn signers_can_sign_one_after_the_other() {
    let root = root();
    let two = anchor(&root).with_threshold(2).expect("a threshold");
    let first = sign_manifest(MANIFEST, &[&signer(&root, "Alice")], now()).expect("signed");
    let limits = Limits::default();
    let both = cosign_manifest(MANIFEST, &first, &signer(&root, "Bob"), now(), &limits).expect("signed");
    assert_eq!(check(&both, &two).expect("trusted").len(), 2);
    let other = cosign_manifest(b"another manifest", &first, &signer(&root, "Bob"), now(), &limits);
    assert!(other.is_err(), "joined a signature over something else");
}

#[test]
fn key_of_another_certificate_is_noticed_when_signing() {
    let root = root();
    let (alice, bob) = (
        root.issue_signer("Example", "Alice", year()).expect("a signer"),
        root.issue_signer("Example", "Bob", year()).expect("a signer"),
    );
    let mixed = file_signer(&Issued { certificate_pem: alice.certificate_pem, key_pem: bob.key_pem });
    assert!(matches!(
        sign_manifest(MANIFEST, &[&mixed], now()),
        Err(super::SignError::KeyMismatch { subject }) if subject.contains("Alice")
    ));
    assert!(matches!(check(&forge(&[&mixed]), &anchor(&root)), Err(TrustError::SignatureWrong { .. })));
}

// CRATES trap 4
#[test]
fn revocation_lists_restrict_the_whole_path() {
    let root = root();
    let below = root.subordinate("Example", "Release Authority", year()).expect("an authority");
    let alice = signer(&below, "Alice");
    let signature = sign_manifest(MANIFEST, &[&alice], now()).expect("signed");
    let anchor = anchor(&root);
    let serials: Vec<String> = alice.chain().certificates().map(super::Certificate::serial).collect();
    let list = |authority: &Authority, serials: &[&str], validity| {
        authority.revocation_list(serials, 1, validity).expect("a list")
    };
    let week = validity(-1, 7);
    let with = |lists: &[String], now| {
        let mut parsed = RevocationLists::none();
        for list in lists {
            parsed.add(list.as_bytes()).expect("a list");
        }
        check_with(&signature, &anchor, &parsed, now).map_err(|error| error.code())
    };
    let (none_root, none_below) = (list(&root, &[], week), list(&below, &[], week));

    with(&[none_root.clone(), none_below.clone()], now()).expect("nothing is revoked");
    let revoked = Err("trust.revoked");
    assert_eq!(with(&[none_root.clone(), list(&below, &[&serials[0]], week)], now()), revoked, "the signer");
    assert_eq!(
        with(&[list(&root, &[&serials[1]], week), none_below.clone()], now()),
        revoked,
        "the authority"
    );
    assert_eq!(
        with(&[list(&root, &[&serials[0]], week), none_below.clone()], now()).map(|_| ()),
        Ok(()),
        "another authority's serial number means nothing"
    );
    assert_eq!(with(std::slice::from_ref(&none_below), now()), Err("trust.revocation-unknown"));
    assert_eq!(with(std::slice::from_ref(&none_root), now()), Err("trust.revocation-unknown"));
    assert_eq!(with(&[none_root.clone(), none_below.clone()], after(8)), Err("trust.revocation-stale"));
    assert_eq!(
        with(&[none_root.clone(), list(&below, &[], validity(1, 9))], now()),
        Err("trust.revocation-invalid"),
        "a list from the future"
    );
    let false_root = self::root();
    assert_eq!(
        with(&[list(&false_root, &[], week), none_below.clone()], now()),
        Err("trust.revocation-invalid"),
        "a list by another key under the same name"
    );
    // The newest list speaks, in whatever order they are given.
    let (old, new) = (list(&below, &[], validity(-3, 7)), list(&below, &[&serials[0]], validity(-2, 7)));
    for lists in [[&old, &new], [&new, &old]] {
        assert_eq!(with(&[none_root.clone(), lists[0].clone(), lists[1].clone()], now()), revoked);
    }
}

#[test]
fn authorities_of_one_name_each_answer_with_their_own_list() {
    let top = root();
    let below = || top.subordinate("Example", "Release Authority", year()).expect("an authority");
    let list = |authority: &Authority, serials: &[&str], from: i64| {
        authority.revocation_list(serials, 1, validity(from, 7)).expect("a list")
    };
    let none_top = list(&top, &[], -1);
    let (one, other) = (root(), root());
    let (one_below, other_below) = (below(), below());
    let roots = [one.certificate_pem(), other.certificate_pem(), top.certificate_pem()].concat();
    let anchor = TrustAnchor::parse(roots.as_bytes()).expect("an anchor");
    for (mine, theirs, more) in [
        (&one, &other, None),
        (&other, &one, None),
        (&one_below, &other_below, Some(&none_top)),
        (&other_below, &one_below, Some(&none_top)),
    ] {
        let alice = signer(mine, "Alice");
        let signature = sign_manifest(MANIFEST, &[&alice], now()).expect("signed");
        let serial = alice.chain().leaf().serial();
        let with = |lists: &[String]| {
            let mut parsed = RevocationLists::none();
            for list in lists.iter().chain(more) {
                parsed.add(list.as_bytes()).expect("a list");
            }
            check_with(&signature, &anchor, &parsed, now()).map(drop).map_err(|error| error.code())
        };
        for (mine_from, theirs_from) in [(-3, -2), (-2, -3)] {
            let theirs_revokes = list(theirs, &[&serial], theirs_from);
            assert_eq!(with(&[list(mine, &[], mine_from), theirs_revokes.clone()]), Ok(()));
            let theirs_does_not = list(theirs, &[], theirs_from);
            let revokes = list(mine, &[&serial], mine_from);
            assert_eq!(with(&[revokes, theirs_does_not.clone()]), Err("trust.revoked"));
            assert_eq!(with(std::slice::from_ref(&theirs_does_not)), Err("trust.revocation-invalid"));
            assert_eq!(with(&[theirs_does_not, theirs_revokes]), Err("trust.revocation-invalid"));
        }
    }
}

#[test]
fn authorities_that_no_verifier_accepts_are_noticed_when_signing() {
    let root = root();
    let below = root.subordinate("Example", "Release Authority", year()).expect("an authority");
    let alice = below.issue_signer("Example", "Alice", year()).expect("a signer");
    let sign_with = |certificate_pem: String, now| {
        let key_pem = zeroize::Zeroizing::new(alice.key_pem.to_string());
        sign_manifest(MANIFEST, &[&file_signer(&Issued { certificate_pem, key_pem })], now)
    };
    let good = alice.certificate_pem.clone();
    check(&sign_with(good.clone(), now()).expect("signed"), &anchor(&root)).expect("trusted");

    let other = root.subordinate("Example", "Release Authority", year()).expect("an authority");
    let beside = sign_with([good.as_str(), other.certificate_pem()].concat(), now());
    let Err(super::SignError::Refused(TrustError::Profile(ProfileError::CertificateUnused(subject)))) =
        beside
    else {
        panic!("{beside:?}")
    };
    assert!(subject.contains("Release Authority"), "{subject}");

    let short = root.subordinate("Example", "Short Authority", validity(-9, 9)).expect("an authority");
    let bob = file_signer(&short.issue_signer("Example", "Bob", year()).expect("a signer"));
    sign_manifest(MANIFEST, &[&bob], now()).expect("signed");
    let late = sign_manifest(MANIFEST, &[&bob], after(10));
    assert!(
        matches!(&late, Err(super::SignError::Refused(TrustError::Expired { subject, .. })) if subject.contains("Short")),
        "{late:?}"
    );
}

#[test]
fn required_revocation_lists_are_required() {
    let root = root();
    let strict = anchor(&root).with_revocation(RevocationPolicy::Required);
    let signature = forge(&[&signer(&root, "Alice")]);
    assert_eq!(check(&signature, &strict), Err(TrustError::RevocationRequired));
    let list = root.revocation_list(&[], 1, validity(-1, 7)).expect("a list");
    let lists = RevocationLists::parse(list.as_bytes()).expect("a list");
    check_with(&signature, &strict, &lists, now()).expect("a fresh list");
}

#[test]
fn file_without_revocation_list_is_not_taken_for_an_empty_one() {
    let root = root();
    for bytes in [b"".as_slice(), b"nothing here", root.certificate_pem().as_bytes(), b"0\x82\x01"] {
        assert!(
            matches!(RevocationLists::parse(bytes), Err(TrustError::RevocationInvalid { .. })),
            "{bytes:?}"
        );
    }
}

#[test]
fn counts_and_sizes_are_limited() {
    let root = root();
    let alice = signer(&root, "Alice");
    let signature = forge(&[&alice, &signer(&root, "Bob")]);
    let two = anchor(&root).with_threshold(2).expect("a threshold");
    let limited =
        |limits: Limits| match verify(MANIFEST, &signature, &two, &RevocationLists::none(), now(), &limits) {
            Err(TrustError::TooLarge { what, .. }) => what,
            other => panic!("{other:?}"),
        };
    let limits = Limits::default();
    assert_eq!(limited(Limits { signature_bytes_max: signature.len() - 1, ..limits }), "bytes");
    assert_eq!(limited(Limits { certificates_max: 1, ..limits }), "certificates");
    assert_eq!(limited(Limits { signers_max: 1, ..limits }), "signers");
}
