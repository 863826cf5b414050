//! The bundle file: what it holds, and each way in which its frame is refused.

use std::io;

use cutover_bundle::{
    Bundle, BundleError, ContainerError, HEADER_BYTES, Limits, ObjectError, RevocationLists, TrustError,
    WriteError, assemble, sign_manifest, verify_detached,
};
use cutover_core::model::{Digest, Manifest, ManifestLimits, Version};

use crate::support::{bundle, contents, now, pki, release, signed_bundle, verify};

fn open(bytes: &[u8]) -> Result<Bundle<Vec<u8>>, ContainerError> {
    Bundle::open(bytes.to_vec(), &Limits::default())
}

// M1, M5, M13, P4
#[test]
fn signed_bundle_of_five_files_round_trips() {
    let pki = pki();
    let bundle = verify(&signed_bundle(&pki.signer), &pki.anchor).expect("a good bundle");
    let manifest = bundle.manifest();
    assert_eq!(manifest.files.len(), 5);
    assert_eq!(manifest.objects.len(), 4, "one content is stored once");
    assert_eq!(bundle.release().manifest, Digest::of(&bundle.manifest_bytes().expect("read")));
    assert!(!bundle.signature_bytes().is_empty());
    assert_eq!(bundle.signers().len(), 1);
    assert_eq!(bundle.signers()[0].subject, "CN=Alice,O=Example");
    for (file, (path, content)) in manifest.files.iter().zip(contents()) {
        assert_eq!(file.path.as_str(), path);
        let entry = manifest.objects.iter().find(|object| object.sha256 == file.sha256).expect("an object");
        let (mut decoded, mut stored) = (Vec::new(), Vec::new());
        bundle.copy_object(entry, &mut decoded, &mut stored).expect("a good object");
        assert_eq!(decoded, content, "{path}");
        assert_eq!(stored.len() as u64, entry.stored_size);
        // What was stored can be decoded again, as the host's store does.
        let mut again = Vec::new();
        cutover_bundle::decode_object(entry, stored.as_slice(), &mut again).expect("a good object");
        assert_eq!(again, content, "{path}");
    }
    bundle.check_objects().expect("a good payload");
}

// M5
#[test]
fn detached_manifest_and_signature_verify_like_the_bundle() {
    let pki = pki();
    let (manifest, _) = release(Version::new(1, 0, 0), &contents());
    let signature = sign_manifest(&manifest, &[&pki.signer], now()).expect("signed");
    let check = |manifest: &[u8], signature: &[u8]| {
        verify_detached(
            manifest,
            signature.to_vec(),
            &pki.anchor,
            &RevocationLists::none(),
            now(),
            &Limits::default(),
        )
    };
    let verified = check(&manifest, &signature).expect("a good signature");
    assert_eq!(verified.manifest().version, Version::new(1, 0, 0));
    assert_eq!(verified.release().manifest, Digest::of(&manifest));
    assert!(matches!(check(&manifest, b""), Err(BundleError::Trust(TrustError::NoSignature))));
    assert!(matches!(check(b"{}", &signature), Err(BundleError::Trust(TrustError::ManifestAltered))));
}

// M4
#[test]
fn change_of_the_release_date_alone_breaks_the_signature() {
    let pki = pki();
    let (manifest, payload) = release(Version::new(1, 0, 0), &contents());
    let signature = sign_manifest(&manifest, &[&pki.signer], now()).expect("signed");
    let mut later = Manifest::parse(&manifest, &ManifestLimits::default()).expect("ours");
    later.released_at = "2026-03-01T12:00:01Z".parse().expect("a time");
    let altered = bundle(&later.to_bytes().expect("valid"), &signature, &payload);
    assert!(matches!(verify(&altered, &pki.anchor), Err(BundleError::Trust(TrustError::ManifestAltered))));
}

// M7
#[test]
fn unsigned_bundle_opens_for_inspection_and_is_refused() {
    let pki = pki();
    let (manifest, payload) = release(Version::new(1, 0, 0), &contents());
    let unsigned = bundle(&manifest, b"", &payload);
    let view = open(&unsigned).expect("a bundle").inspect_untrusted();
    assert_eq!(view.claimed_manifest.expect("readable").version, Version::new(1, 0, 0));
    assert_eq!(view.claimed_signers, Err(TrustError::NoSignature));
    assert_eq!(
        verify(&unsigned, &pki.anchor).map(|_| ()).map_err(|error| error.code()),
        Err("trust.no-signature")
    );
}

#[test]
fn bundle_is_signed_and_signed_again_without_touching_its_payload() {
    let pki = pki();
    let (manifest, payload) = release(Version::new(1, 0, 0), &contents());
    let unsigned = open(&bundle(&manifest, b"", &payload)).expect("a bundle");
    let mut signed = Vec::new();
    unsigned.sign(&[&pki.signer], now(), &mut signed).expect("signed");
    assert!(signed.ends_with(&payload));
    verify(&signed, &pki.anchor).expect("trusted").check_objects().expect("the payload stays");

    let second = pki.root.issue_signer("Example", "Bob", crate::support::days(30)).expect("a signer");
    let mut both = Vec::new();
    open(&signed)
        .expect("a bundle")
        .cosign(&crate::support::file_signer(&second), now(), &mut both)
        .expect("signed");
    let two = pki.anchor.clone().with_threshold(2).expect("a threshold");
    assert_eq!(verify(&both, &two).expect("trusted").signers().len(), 2);
    assert!(verify(&both, &pki.anchor).is_err(), "two signers where one is meant");
}

#[test]
fn signature_is_checked_before_the_manifest_is_parsed() {
    let pki = pki();
    let garbage = b"this is no manifest";
    let mut bytes = b"CUTOVER\x01\0\0\0\x13\0\0\0\0".to_vec();
    bytes.extend(garbage);
    assert!(matches!(verify(&bytes, &pki.anchor), Err(BundleError::Trust(TrustError::NoSignature))));
    let signature = sign_manifest(garbage, &[&pki.signer], now()).expect("signed");
    let mut bytes = b"CUTOVER\x01\0\0\0\x13".to_vec();
    bytes.extend((signature.len() as u32).to_be_bytes());
    bytes.extend(garbage);
    bytes.extend(signature);
    assert!(matches!(verify(&bytes, &pki.anchor), Err(BundleError::Manifest(_))));
}

#[test]
fn other_files_and_other_versions_are_told_apart() {
    assert!(matches!(open(b""), Err(ContainerError::NotABundle)));
    assert!(matches!(open(b"CUTOVER"), Err(ContainerError::NotABundle)));
    assert!(matches!(open(b"\x7fELF............................"), Err(ContainerError::NotABundle)));
    assert!(matches!(open(b"CUTOVER\x02\0\0\0\0\0\0\0\0"), Err(ContainerError::Version(2))));
    assert!(matches!(open(b"CUTOVER\x01\0\0\0"), Err(ContainerError::Truncated { needed: 16, .. })));
}

#[test]
fn bundle_cut_off_anywhere_is_refused() {
    let pki = pki();
    let bytes = signed_bundle(&pki.signer);
    for length in 0..bytes.len() {
        assert!(verify(&bytes[..length], &pki.anchor).is_err(), "{length} bytes");
    }
    verify(&bytes, &pki.anchor).expect("the whole bundle");
}

#[test]
fn bytes_behind_the_payload_are_refused() {
    let pki = pki();
    let mut bytes = signed_bundle(&pki.signer);
    bytes.push(0);
    assert!(matches!(
        verify(&bytes, &pki.anchor),
        Err(BundleError::PayloadSize { expected, actual }) if actual == expected + 1
    ));
}

// M8: a payload bit changes nothing before its object is read, and is then found.
#[test]
fn altered_payload_is_refused_object_by_object() {
    let pki = pki();
    let bytes = signed_bundle(&pki.signer);
    let payload = {
        let bundle = verify(&bytes, &pki.anchor).expect("good");
        bytes.len() - bundle.manifest().payload_bytes() as usize
    };
    for at in (payload..bytes.len()).step_by(7) {
        for bit in [0, 5] {
            let mut altered = bytes.clone();
            altered[at] ^= 1 << bit;
            let bundle = verify(&altered, &pki.anchor).expect("the manifest is good");
            assert!(
                matches!(
                    bundle.check_objects(),
                    Err(ObjectError::Digest { .. } | ObjectError::Frame { .. } | ObjectError::Size { .. })
                ),
                "byte {at}"
            );
        }
    }
}

// M8: any bit of the part that is read before the payload.
#[test]
fn no_bit_before_the_payload_can_change() {
    let pki = pki();
    let bytes = signed_bundle(&pki.signer);
    let bundle = verify(&bytes, &pki.anchor).expect("good");
    let payload = bytes.len() - bundle.manifest().payload_bytes() as usize;
    let mut altered = bytes.clone();
    // The signature's bits are all tried in the crate's own tests; here one bit of each byte.
    for at in 0..payload {
        let bits: &[u8] = if at < HEADER_BYTES { &[0, 1, 2, 3, 4, 5, 6, 7] } else { &[0] };
        for bit in bits {
            altered[at] ^= 1 << bit;
            assert!(verify(&altered, &pki.anchor).is_err(), "bit {bit} of byte {at}");
            altered[at] ^= 1 << bit;
        }
    }
}

#[test]
fn object_of_another_release_is_not_read() {
    let pki = pki();
    let bundle = verify(&signed_bundle(&pki.signer), &pki.anchor).expect("good");
    let good = bundle.manifest().objects[0].clone();
    let mut shifted = good.clone();
    shifted.offset += 1;
    let mut longer = good.clone();
    longer.stored_size += 1;
    for entry in [shifted, longer] {
        assert!(matches!(
            bundle.copy_object(&entry, &mut io::sink(), &mut io::sink()),
            Err(ObjectError::NotInRelease(digest)) if digest == entry.sha256
        ));
    }
}

#[test]
fn payload_that_does_not_fit_the_manifest_is_not_written() {
    let (manifest, payload) = release(Version::new(1, 0, 0), &contents());
    let longer = [payload.as_slice(), b"x"].concat();
    for payload in [&payload[1..], &longer] {
        assert!(matches!(
            assemble(&manifest, b"", payload, &mut io::sink(), &Limits::default()),
            Err(WriteError::PayloadSize { .. })
        ));
    }
    assert!(matches!(
        assemble(b"{}", b"", payload.as_slice(), &mut io::sink(), &Limits::default()),
        Err(WriteError::Manifest(_))
    ));
}

#[test]
fn each_refusal_has_a_code_of_its_own() {
    let pki = pki();
    let bytes = signed_bundle(&pki.signer);
    let mut codes = std::collections::BTreeSet::new();
    let mut longer = bytes.clone();
    longer.push(0);
    for bytes in [b"".as_slice(), b"CUTOVER\x09", &bytes[..20], &longer] {
        let code = verify(bytes, &pki.anchor).map(|_| ()).expect_err("refused").code();
        assert!(codes.insert(code), "{code} twice");
    }
}
