//! Bundles by a trusted signer that are hostile all the same, and bytes that are nothing at all.

use cutover_bundle::{
    Bundle, BundleError, ContainerError, Limits, ReadAt, RevocationLists, TrustAnchor, anchor, decode_object,
    sign_manifest, verify_detached,
};
use cutover_core::model::{Digest, Encoding, Manifest, ManifestError, ManifestLimits, ObjectEntry, Version};
use proptest::prelude::*;

use crate::support::{contents, now, pki, release, verify};

/// The release's manifest after `edit`, signed by a trusted signer, in a bundle with the release's payload.
fn signed_after(edit: impl FnOnce(&mut serde_json::Value)) -> Result<(), BundleError> {
    let pki = pki();
    let (manifest, payload) = release(Version::new(1, 0, 0), &contents());
    let mut json: serde_json::Value = serde_json::from_slice(&manifest).expect("JSON");
    edit(&mut json);
    let manifest = serde_json::to_vec(&json).expect("JSON");
    let signature = sign_manifest(&manifest, &[&pki.signer], now()).expect("signed");
    // Put together by hand: `assemble` would refuse to.
    let mut bytes = b"CUTOVER\x01".to_vec();
    bytes.extend((manifest.len() as u32).to_be_bytes());
    bytes.extend((signature.len() as u32).to_be_bytes());
    bytes.extend(manifest);
    bytes.extend(signature);
    bytes.extend(payload);
    verify(&bytes, &pki.anchor).map(|_| ())
}

// P1, P2, P3, P4, P5, sig-5
#[test]
fn trusted_bundle_with_one_bad_path_is_refused_whole() {
    signed_after(|json| json["files"][2]["path"] = "bin/subdir/other".into()).expect("a good path");
    for path in [
        "../outside",
        "/etc/passwd",
        "",
        "a/../../b",
        "a\\..\\b",
        "a\0b",
        "C:\\x",
        "a/",
        ".",
        "a/./b",
        "a//b",
        "./b",
        ".cutover/lock",
        "BIN/APP",
        "bin/app/below",
        "bin",
        "bin/app\u{202e}",
        "new\nline",
    ] {
        for field in ["files", "shared", "symlinks"] {
            let result = signed_after(|json| match field {
                "files" => json["files"][2]["path"] = path.into(),
                "shared" => json["shared"] = serde_json::json!([path]),
                _ => json["symlinks"] = serde_json::json!([{ "path": path, "target": "app" }]),
            });
            // A shared path may name a file of the release.
            match result {
                Err(BundleError::Manifest(error @ (ManifestError::Path(_) | ManifestError::Syntax(_)))) => {
                    let message = error.to_string();
                    assert!(message.contains("path"), "{field} {path:?}: {message}");
                    assert!(
                        !message.contains(|c: char| c.is_control() || c == '\u{202e}'),
                        "not escaped: {message:?}"
                    );
                }
                other => panic!("{field} {path:?}: {other:?}"),
            }
        }
    }
    for target in ["../../x", "/etc/passwd", "", "x/../../.."] {
        let result = signed_after(|json| {
            json["symlinks"] = serde_json::json!([{ "path": "bin/link", "target": target }])
        });
        assert_eq!(result.map_err(|error| error.code()), Err("manifest.symlink"), "{target:?}");
    }
}

// M11, M12, sig-6
#[test]
fn trusted_bundle_with_lies_about_sizes_is_refused_whole() {
    type Edit = fn(&mut serde_json::Value);
    const HUGE: u64 = 1 << 63;
    let edits: [(&str, Edit); 8] = [
        ("format", |json| json["format"] = 2.into()),
        ("unknown field", |json| json["surprise"] = true.into()),
        ("file of 2^63 bytes", |json| json["files"][0]["size"] = HUGE.into()),
        ("object of 2^63 bytes", |json| json["objects"][0]["size"] = HUGE.into()),
        ("stored size of 2^63", |json| json["objects"][0]["stored_size"] = HUGE.into()),
        ("stored size of 2^64 - 1", |json| {
            json["objects"][3]["stored_size"] = u64::MAX.into();
        }),
        ("overlapping objects", |json| json["objects"][1]["offset"] = 0.into()),
        ("payload shorter than declared", |json| {
            let last = json["objects"].as_array().expect("objects").len() - 1;
            let stored = &mut json["objects"][last]["stored_size"];
            *stored = (stored.as_u64().expect("a size") + 1).into();
            let size = stored.clone();
            json["objects"][last]["size"] = size.clone();
            for at in [3, 4] {
                json["files"][at]["size"] = size.clone();
            }
        }),
    ];
    for (name, edit) in edits {
        let error = signed_after(edit).expect_err(name);
        assert!(
            matches!(error, BundleError::Manifest(_) | BundleError::PayloadSize { .. }),
            "{name}: {error}"
        );
    }
}

/// A source that is as large as it says but must never be read beyond its header.
struct Liar {
    header: [u8; 16],
}

impl ReadAt for Liar {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
        let rest = self.header.get(offset as usize..).unwrap_or_default();
        assert!(buf.len() <= 16, "asked for {} bytes", buf.len());
        let count = rest.len().min(buf.len());
        buf[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn size(&self) -> std::io::Result<u64> {
        Ok(u64::MAX)
    }
}

// sig-6
#[test]
fn lengths_are_capped_before_memory_is_taken() {
    for (manifest, signature, part) in
        [(u32::MAX, 0, "manifest"), (10, u32::MAX, "signature"), (10, 65_537, "signature")]
    {
        let mut header = *b"CUTOVER\x01        ";
        header[8..12].copy_from_slice(&manifest.to_be_bytes());
        header[12..].copy_from_slice(&signature.to_be_bytes());
        assert!(matches!(
            Bundle::open(Liar { header }, &Limits::default()),
            Err(ContainerError::TooLarge { part: refused, .. }) if refused == part
        ));
    }
}

/// A good bundle, its anchor, and a place to alter it.
fn good() -> &'static (Vec<u8>, TrustAnchor) {
    static GOOD: std::sync::OnceLock<(Vec<u8>, TrustAnchor)> = std::sync::OnceLock::new();
    GOOD.get_or_init(|| {
        let pki = pki();
        (crate::support::signed_bundle(&pki.signer), pki.anchor)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    // sig-7
    #[test]
    fn any_bytes_are_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let (_, trusted) = good();
        let framed = [b"CUTOVER\x01".as_slice(), &bytes].concat();
        for bytes in [bytes.clone(), framed] {
            prop_assert!(verify(&bytes, trusted).is_err());
            if let Ok(bundle) = Bundle::open(bytes, &Limits::default()) {
                let _ = bundle.inspect_untrusted();
            }
        }
        prop_assert!(Manifest::parse(&bytes, &ManifestLimits::default()).is_err());
        prop_assert!(RevocationLists::parse(&bytes).is_err());
        prop_assert!(TrustAnchor::parse(&bytes).is_err());
        prop_assert!(matches!(anchor::read_trailer(&bytes), Ok(None)));
        let none = RevocationLists::none();
        prop_assert!(verify_detached(&[], bytes.clone(), trusted, &none, now(), &Limits::default()).is_err());
        let entry = ObjectEntry {
            sha256: Digest::of(b"x"),
            size: 1,
            stored_size: bytes.len() as u64,
            encoding: Encoding::Zstd,
            offset: 0,
        };
        let _ = decode_object(&entry, bytes.as_slice(), &mut std::io::sink());
    }

    // sig-7
    #[test]
    fn damaged_bundle_is_refused_or_its_objects_are(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let (bytes, trusted) = good();
        let mut altered = bytes.clone();
        for (at, byte) in edits {
            let at = at.index(altered.len());
            altered[at] = byte;
        }
        if cut.index(3) == 0 {
            altered.truncate(cut.index(altered.len()));
        }
        if altered != *bytes && let Ok(bundle) = verify(&altered, trusted) {
            prop_assert!(bundle.check_objects().is_err());
        }
    }

    // sig-7: damage inside the signature, where DER is parsed.
    #[test]
    fn damaged_signature_is_refused_without_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let (bytes, trusted) = good();
        let bundle = verify(bytes, trusted).expect("good");
        let mut signature = bundle.signature_bytes().to_vec();
        for (at, byte) in edits {
            let at = at.index(signature.len());
            signature[at] = byte;
        }
        if signature != bundle.signature_bytes() {
            let none = RevocationLists::none();
            let manifest = bundle.manifest_bytes().expect("read");
            let result = verify_detached(&manifest, signature, trusted, &none, now(), &Limits::default());
            prop_assert!(result.is_err());
        }
    }
}
