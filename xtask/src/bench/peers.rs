//! What users have today: each peer's way to put the same tree in place, as shell lines.
//!
//! Adding a peer is adding a row to [`PEERS`]. Preparing (packing, signing) is not measured; installing is.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use crate::program;

/// Whether a peer proves who made what it installs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// It checks a signature first.
    Signed,
    /// It installs what it is given.
    Unsigned,
}

/// One way to install a tree. `$TREE` is the tree, `$WORK` a directory of the peer's own, `$OUT` where the tree has to
/// appear; all three are absolute.
pub(super) struct Peer {
    /// How the table calls it.
    pub(super) name: &'static str,
    /// Whether it checks a signature.
    pub(super) origin: Origin,
    /// The programs it needs, each with its Debian package.
    needs: &'static [(&'static str, &'static str)],
    prepare: &'static str,
    install: &'static str,
}

/// The first row is what ratios are taken to.
pub(super) const PEERS: &[Peer] = &[
    Peer {
        name: "cp -a",
        origin: Origin::Unsigned,
        needs: &[],
        prepare: "true",
        install: "cp -a \"$TREE\" \"$OUT\"",
    },
    Peer {
        name: "rsync -a",
        origin: Origin::Unsigned,
        needs: &[("rsync", "rsync")],
        prepare: "true",
        install: "rsync -a \"$TREE/\" \"$OUT/\"",
    },
    Peer {
        name: "tar xf",
        origin: Origin::Unsigned,
        needs: &[("tar", "tar")],
        prepare: "tar cf tree.tar -C \"$TREE\" .",
        install: "mkdir \"$OUT\" && tar xf tree.tar -C \"$OUT\"",
    },
    Peer {
        name: "tar xf (zstd)",
        origin: Origin::Unsigned,
        needs: &[("tar", "tar"), ("zstd", "zstd")],
        prepare: "tar cf - -C \"$TREE\" . | zstd -q -9 -o tree.tar.zst",
        install: "mkdir \"$OUT\" && tar xf tree.tar.zst -C \"$OUT\"",
    },
    Peer {
        name: "casync extract",
        origin: Origin::Unsigned,
        needs: &[("casync", "casync")],
        prepare: "casync make --store=chunks tree.caidx \"$TREE\"",
        install: "casync extract --store=chunks tree.caidx \"$OUT\"",
    },
    Peer {
        name: "ostree pull-local + checkout",
        origin: Origin::Unsigned,
        needs: &[("ostree", "ostree")],
        prepare: "ostree init --repo=remote --mode=archive && \
                  ostree commit --repo=remote -b tree --canonical-permissions --tree=dir=\"$TREE\"",
        install: "rm -rf local && ostree init --repo=local --mode=bare-user && \
                  ostree pull-local --repo=local remote tree && ostree checkout --repo=local -U tree \"$OUT\"",
    },
    Peer {
        name: "swupdate (CMS)",
        origin: Origin::Signed,
        needs: &[("swupdate", "swupdate"), ("openssl", "openssl"), ("cpio", "cpio")],
        prepare: r#"
tar cf tree.tar -C "$TREE" .
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key.pem -out cert.pem -subj /CN=x -days 30 \
  -addext keyUsage=critical,digitalSignature -addext extendedKeyUsage=emailProtection
cat > sw-description <<END
software = { version = "1.0.0"; hardware-compatibility = [ "1.0" ]; files: ( {
  filename = "tree.tar"; type = "archive"; path = "$OUT"; preserve-attributes = true;
  sha256 = "$(sha256sum tree.tar | cut -d' ' -f1)"; } ); }
END
openssl cms -sign -in sw-description -out sw-description.sig -signer cert.pem -inkey key.pem -outform DER -nosmimecap -binary
printf 'sw-description\nsw-description.sig\ntree.tar\n' | cpio -o -H crc --quiet > tree.swu"#,
        install: "mkdir \"$OUT\" && swupdate -l 1 -k cert.pem -H box:1.0 -M -m -i tree.swu",
    },
    Peer {
        name: "mender (directory module)",
        origin: Origin::Signed,
        needs: &[("mender", "mender-client"), ("mender-artifact", "mender-artifact"), ("openssl", "openssl")],
        prepare: r#"
openssl ecparam -genkey -name prime256v1 -noout -out key.pem
openssl ec -in key.pem -pubout -out public.pem
tar cf update.tar -C "$TREE" . && printf %s "$OUT" > dest_dir
mender-artifact write module-image -T directory -n r1 -t box -o tree.mender -f update.tar -f dest_dir -k key.pem --compression none
mkdir -p conf && echo artifact_name=r0 > conf/artifact_info && echo device_type=box > conf/device_type
printf '{"ArtifactVerifyKey":"%s/public.pem","DeviceTypeFile":"%s/conf/device_type"}' "$WORK" "$WORK" > conf/mender.conf"#,
        // The client reads a fixed directory; a mount namespace gives it this one.
        install: "rm -rf data && mkdir data && unshare -m sh -c 'mkdir -p /etc/mender && \
                  mount --bind conf /etc/mender && mender --data \"$WORK/data\" install tree.mender && \
                  mender --data \"$WORK/data\" commit'",
    },
    Peer {
        name: "dpkg -i",
        origin: Origin::Unsigned,
        needs: &[("dpkg", "dpkg"), ("dpkg-deb", "dpkg")],
        prepare: r#"
mkdir -p package/DEBIAN "package/$(dirname "$OUT")" && cp -a "$TREE" "package/$OUT"
printf 'Package: tree\nVersion: 1.0.0\nArchitecture: all\nMaintainer: x <x@example.com>\nDescription: x\n' > package/DEBIAN/control
dpkg-deb --root-owner-group -Znone -b package tree.deb && rm -rf package"#,
        install: "rm -rf admin && mkdir -p admin/info admin/updates && touch admin/status admin/available && \
                  dpkg --admindir=\"$WORK/admin\" --instdir=/ --log=/dev/null --force-not-root -i tree.deb",
    },
];

impl Peer {
    /// The Debian packages that are missing; empty when the peer can run.
    pub(super) fn missing(&self) -> Vec<&'static str> {
        let missing = self.needs.iter().filter(|(program, _)| !is_installed(program));
        missing.map(|(_, package)| *package).collect()
    }

    /// Packs and signs `tree`; nothing of it is measured.
    pub(super) fn prepare(&self, tree: &Path, place: &Path) -> Result<()> {
        std::fs::create_dir_all(self.work(place))?;
        program::succeed(self.shell(self.prepare, tree, place)).map(drop)
    }

    /// The measured command.
    pub(super) fn install(&self, tree: &Path, place: &Path) -> Command {
        self.shell(self.install, tree, place)
    }

    /// Where the tree appears.
    pub(super) fn out(&self, place: &Path) -> PathBuf {
        self.work(place).join("out")
    }

    fn work(&self, place: &Path) -> PathBuf {
        let name = self.name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
        place.join(name.collect::<Vec<_>>().join("-"))
    }

    fn shell(&self, script: &str, tree: &Path, place: &Path) -> Command {
        let work = self.work(place);
        let mut command = Command::new("bash");
        command.args(["-euc", script]).current_dir(&work);
        command.env("TREE", tree).env("OUT", self.out(place)).env("WORK", &work);
        command
    }
}

fn is_installed(program: &str) -> bool {
    let mut command = Command::new("sh");
    command.args(["-c", "command -v \"$0\"", program]);
    command.output().is_ok_and(|output| output.status.success())
}
