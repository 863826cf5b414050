//! The releases of the stories are real: signed, verified, and with every kind of difference between them.

use cutover_sim::releases;

#[test]
fn releases_verify_and_their_objects_are_what_their_files_say() {
    for release in releases() {
        for (file, entry) in release.spec.files.iter().zip(&release.bundle.manifest().files) {
            let object =
                release.bundle.manifest().objects.iter().find(|object| object.sha256 == entry.sha256);
            let mut content = Vec::new();
            release
                .bundle
                .copy_object(object.expect("an object"), &mut content, &mut std::io::sink())
                .expect("a sound object");
            assert_eq!(content, file.bytes, "{}", file.path);
        }
    }
}
