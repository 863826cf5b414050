//! A signer whose key is in a hardware token, reached by PKCS#11.
//!
//! This is the one place of this crate that is given a path: a token's driver is a shared library, and only loading it by
//! its path reaches the token. The library runs inside this process, so its path must come from the operator and be
//! absolute. Nothing else here opens anything: the PIN is read by the caller.

use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    error::{Error, RvError},
    mechanism::{
        Mechanism,
        eddsa::{EddsaParams, EddsaSignatureScheme},
    },
    object::{Attribute, AttributeType, CertificateType, ObjectClass, ObjectHandle},
    session::{Session, UserType},
    slot::Slot,
    types::AuthPin,
};
use der::{Encode, asn1::UintRef};
use zeroize::Zeroizing;

use super::{CertificateChain, Scheme, Signer, SignerError};

/// Where a key is: a PKCS#11 URI (RFC 7512), such as
/// `pkcs11:token=releases;object=signer?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/run/pin`.
///
/// Known path attributes are `token`, `serial`, `object`, `id` and `type`; known query attributes are `module-path`
/// (required) and `pin-source`. Others are refused, so that a misspelt one does not select another key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pkcs11Uri {
    token: Option<String>,
    serial: Option<String>,
    object: Option<String>,
    id: Option<Vec<u8>>,
    module_path: String,
    pin_source: Option<String>,
}

impl std::str::FromStr for Pkcs11Uri {
    type Err = SignerError;

    fn from_str(text: &str) -> Result<Self, SignerError> {
        let refuse = |reason: &str| SignerError::Uri(reason.to_owned());
        let rest = text.strip_prefix("pkcs11:").ok_or_else(|| refuse("it does not start with `pkcs11:`"))?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (mut token, mut serial, mut object, mut id) = (None, None, None, None);
        for part in path.split(';').filter(|part| !part.is_empty()) {
            let (name, value) = pair(part)?;
            match name {
                "token" => set(&mut token, name, text_of(value)?)?,
                "serial" => set(&mut serial, name, text_of(value)?)?,
                "object" => set(&mut object, name, text_of(value)?)?,
                "id" => set(&mut id, name, decode(value)?)?,
                "type" if value == "private" => {}
                "type" => return Err(refuse("its type is not `private`")),
                other => return Err(unknown(other)),
            }
        }
        let (mut module_path, mut pin_source) = (None, None);
        for part in query.split('&').filter(|part| !part.is_empty()) {
            let (name, value) = pair(part)?;
            match name {
                "module-path" => set(&mut module_path, name, text_of(value)?)?,
                "pin-source" => set(&mut pin_source, name, text_of(value)?)?,
                "pin-value" => {
                    return Err(refuse(
                        "a PIN in a command line can be read by everybody; use `pin-source=file:/PATH`",
                    ));
                }
                other => return Err(unknown(other)),
            }
        }
        let module_path =
            module_path.ok_or_else(|| refuse("it lacks `module-path=/PATH/OF/THE/TOKEN'S/LIBRARY.so`"))?;
        if !module_path.starts_with('/') {
            return Err(refuse("its `module-path` is not absolute"));
        }
        if object.is_none() && id.is_none() {
            return Err(refuse("it names no key: give `object` or `id`"));
        }
        Ok(Self { token, serial, object, id, module_path, pin_source })
    }
}

fn unknown(name: &str) -> SignerError {
    SignerError::Uri(format!("its attribute `{}` is unknown", name.escape_default()))
}

fn pair(part: &str) -> Result<(&str, &str), SignerError> {
    part.split_once('=')
        .ok_or_else(|| SignerError::Uri(format!("`{}` is not NAME=VALUE", part.escape_default())))
}

fn set<T>(slot: &mut Option<T>, name: &str, value: T) -> Result<(), SignerError> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(SignerError::Uri(format!("its attribute `{name}` is given twice"))),
    }
}

/// Undoes percent-encoding (RFC 3986, section 2.1).
fn decode(text: &str) -> Result<Vec<u8>, SignerError> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::new();
    while let Some(byte) = bytes.next() {
        decoded.push(if byte == b'%' {
            let mut digit = || bytes.next().and_then(|byte| char::from(byte).to_digit(16));
            match (digit(), digit()) {
                (Some(high), Some(low)) => (high * 16 + low) as u8,
                _ => return Err(SignerError::Uri("a `%` is not followed by two digits".to_owned())),
            }
        } else {
            byte
        });
    }
    Ok(decoded)
}

fn text_of(text: &str) -> Result<String, SignerError> {
    String::from_utf8(decode(text)?).map_err(|_| SignerError::Uri("a value is not UTF-8".to_owned()))
}

impl Pkcs11Uri {
    /// Where the caller finds the PIN, as the URI states it (`file:/PATH` or a path).
    pub fn pin_source(&self) -> Option<&str> {
        self.pin_source.as_deref()
    }
}

/// The PIN of a token. Wiped from memory when dropped, and never shown.
pub struct Pin(Zeroizing<String>);

impl Pin {
    /// Takes what a PIN file holds; one line end at its end is left out.
    pub fn new(text: impl Into<Zeroizing<String>>) -> Self {
        let text: Zeroizing<String> = text.into();
        let end = text.trim_end_matches(['\r', '\n']).len();
        Self(Zeroizing::new(text[..end].to_owned()))
    }
}

/// Signs with a key in a token. Not `Sync`: a token's session belongs to one thread.
pub struct Pkcs11Signer {
    chain: CertificateChain,
    session: Session,
    key: ObjectHandle,
}

impl Pkcs11Signer {
    /// Loads the token's library, logs in and finds the key. Without `chain` the certificate is read from the token,
    /// where it has the key's label or id.
    ///
    /// # Errors
    /// [`SignerError::Token`]: also when no key, or more than one, fits the URI.
    pub fn open(
        uri: &Pkcs11Uri,
        pin: Option<&Pin>,
        chain: Option<CertificateChain>,
    ) -> Result<Self, SignerError> {
        let module = Pkcs11::new(&uri.module_path).map_err(failed("load its library"))?;
        match module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
            // Another signer of this process uses the same library.
            Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
            Err(error) => return Err(failed("start")(error)),
        }
        let slot = find_slot(&module, uri)?;
        let session = module.open_ro_session(slot).map_err(failed("open a session"))?;
        if let Some(pin) = pin {
            let pin = AuthPin::from(pin.0.as_str());
            match session.login(UserType::User, Some(&pin)) {
                Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => {}
                Err(error) => return Err(failed("log in")(error)),
            }
        }
        let key = find_key(&session, uri)?;
        let chain = match chain {
            Some(chain) => chain,
            None => read_chain(&session, uri)?,
        };
        Ok(Self { chain, session, key })
    }
}

fn failed(action: &'static str) -> impl FnOnce(Error) -> SignerError {
    move |error| SignerError::Token { action, reason: error.to_string() }
}

fn refuse(action: &'static str, reason: &str) -> SignerError {
    SignerError::Token { action, reason: reason.to_owned() }
}

fn find_slot(module: &Pkcs11, uri: &Pkcs11Uri) -> Result<Slot, SignerError> {
    let mut found = Vec::new();
    for slot in module.get_slots_with_initialized_token().map_err(failed("list its slots"))? {
        let token = module.get_token_info(slot).map_err(failed("describe itself"))?;
        let fits = |wanted: &Option<String>, actual: &str| {
            wanted.as_deref().is_none_or(|wanted| wanted == actual.trim_end())
        };
        if fits(&uri.token, token.label()) && fits(&uri.serial, token.serial_number()) {
            found.push(slot);
        }
    }
    match found.as_slice() {
        [slot] => Ok(*slot),
        [] => Err(refuse("be found", "no token fits the URI")),
        _ => Err(refuse("be found", "more than one token fits the URI; add `token` or `serial`")),
    }
}

/// What names the key, and the certificate that goes with it.
fn named(uri: &Pkcs11Uri, class: ObjectClass) -> Vec<Attribute> {
    let label = uri.object.as_ref().map(|label| Attribute::Label(label.clone().into_bytes()));
    let id = uri.id.as_ref().map(|id| Attribute::Id(id.clone()));
    [Some(Attribute::Class(class)), label, id].into_iter().flatten().collect()
}

fn find_key(session: &Session, uri: &Pkcs11Uri) -> Result<ObjectHandle, SignerError> {
    let found =
        session.find_objects(&named(uri, ObjectClass::PRIVATE_KEY)).map_err(failed("find the key"))?;
    match found.as_slice() {
        [key] => Ok(*key),
        [] => Err(refuse("find the key", "no private key fits the URI (is a PIN needed?)")),
        _ => Err(refuse("find the key", "more than one private key fits the URI; add `id`")),
    }
}

fn read_chain(session: &Session, uri: &Pkcs11Uri) -> Result<CertificateChain, SignerError> {
    const ACTION: &str = "give the certificate";
    let mut template = named(uri, ObjectClass::CERTIFICATE);
    template.push(Attribute::CertificateType(CertificateType::X_509));
    let found = session.find_objects(&template).map_err(failed(ACTION))?;
    let [certificate] = found.as_slice() else {
        return Err(refuse(ACTION, "not exactly one certificate fits the URI; give it as a file"));
    };
    let values = session.get_attributes(*certificate, &[AttributeType::Value]).map_err(failed(ACTION))?;
    match values.as_slice() {
        [Attribute::Value(der)] => CertificateChain::from_ders(&[der]),
        _ => Err(refuse(ACTION, "it has no value")),
    }
}

impl Signer for Pkcs11Signer {
    fn chain(&self) -> &CertificateChain {
        &self.chain
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignerError> {
        use aws_lc_rs::digest::{SHA256, SHA384, digest};
        let sign = |mechanism: Mechanism<'_>, message: &[u8]| {
            self.session.sign(&mechanism, self.key, message).map_err(failed("sign"))
        };
        // Few tokens hash for ECDSA themselves, so the hash is made here.
        match self.chain.scheme() {
            Scheme::EcdsaP256Sha256 => {
                ecdsa_der(&sign(Mechanism::Ecdsa, digest(&SHA256, message).as_ref())?, 64)
            }
            Scheme::EcdsaP384Sha384 => {
                ecdsa_der(&sign(Mechanism::Ecdsa, digest(&SHA384, message).as_ref())?, 96)
            }
            Scheme::RsaPkcs1Sha256 => sign(Mechanism::Sha256RsaPkcs, message),
            Scheme::Ed25519 => {
                sign(Mechanism::Eddsa(EddsaParams::new(EddsaSignatureScheme::Ed25519)), message)
            }
        }
    }
}

/// PKCS#11 returns r and s side by side; X.509 wants a SEQUENCE of two INTEGERs (RFC 3279, section 2.2.3).
fn ecdsa_der(signature: &[u8], length: usize) -> Result<Vec<u8>, SignerError> {
    let wrong = || refuse("sign", "its signature has a wrong form");
    if signature.len() != length {
        return Err(wrong());
    }
    let (r, s) = signature.split_at(length / 2);
    let integers =
        [r, s].into_iter().map(UintRef::new).collect::<Result<Vec<_>, _>>().map_err(|_| wrong())?;
    integers.to_der().map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uri_names_token_key_module_and_pin_source() {
        let uri: Pkcs11Uri =
            "pkcs11:token=my%20token;object=key;id=%01%ff;type=private?module-path=/lib/x.so&pin-source=file:/run/pin"
                .parse()
                .expect("a URI");
        assert_eq!(uri.token.as_deref(), Some("my token"));
        assert_eq!(uri.id.as_deref(), Some([1, 255].as_slice()));
        assert_eq!(uri.pin_source(), Some("file:/run/pin"));
    }

    #[test]
    fn uri_with_unknown_doubled_or_missing_parts_is_refused() {
        for (uri, word) in [
            ("file:/key", "pkcs11:"),
            ("pkcs11:object=a", "module-path"),
            ("pkcs11:object=a?module-path=x.so", "absolute"),
            ("pkcs11:token=a?module-path=/x.so", "object"),
            ("pkcs11:object=a;object=b?module-path=/x.so", "twice"),
            ("pkcs11:objekt=a?module-path=/x.so", "objekt"),
            ("pkcs11:object=a%4?module-path=/x.so", "digits"),
            ("pkcs11:object=a%ff?module-path=/x.so", "UTF-8"),
            ("pkcs11:object=a?module-path=/x.so&pin-value=1234", "pin-source"),
        ] {
            let error = uri.parse::<Pkcs11Uri>().expect_err(uri).to_string();
            assert!(error.contains(word), "{uri}: {error}");
            assert!(!error.contains("1234"), "a PIN in a message: {error}");
        }
    }

    #[test]
    fn raw_signature_becomes_der_with_shortest_integers() {
        let mut raw = [0; 64];
        raw[31] = 0x80;
        raw[63] = 1;
        assert_eq!(ecdsa_der(&raw, 64).expect("DER"), [0x30, 7, 2, 2, 0, 0x80, 2, 1, 1]);
        assert!(ecdsa_der(&raw[1..], 64).is_err());
    }
}
