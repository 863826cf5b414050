//! The releases of a GitHub repository, by its REST API (version 2022-11-28).
//!
//! Three endpoints: the list of releases (with `If-None-Match`, which costs nothing of the rate limit when nothing changed),
//! and each asset, which redirects to another host that never sees the token. Limits are honoured by
//! [`cutover_core::fetch::answer`].

use cutover_core::model::Digest;
use reqwest::header::{self, HeaderName};
use serde::Deserialize;

use super::{BUNDLE_SUFFIX, Listing, Offer, OfferPlace, Source};
use crate::fetch::{
    FetchError, FetchPorts, Fetcher, Got, RelativePath, SourceSettings, Tag, Token, base::Base, get::Target,
    http::Request,
};

/// Releases per page; the most there may be.
const PER_PAGE: usize = 100;
/// The most pages that are read: releases further back are not offered.
const PAGES_MAX: usize = 10;
/// The largest page.
const PAGE_BYTES_MAX: u64 = 32 << 20;

/// The releases of one GitHub repository.
pub struct GithubSource {
    fetcher: Fetcher,
    /// `repos/OWNER/NAME/releases`.
    releases: RelativePath,
    name: String,
}

#[derive(Deserialize)]
struct Release {
    tag_name: String,
    #[serde(default)]
    draft: bool,
    #[serde(default)]
    prerelease: bool,
    #[serde(default)]
    assets: Vec<Asset>,
}

#[derive(Deserialize)]
struct Asset {
    id: u64,
    name: String,
    size: u64,
    /// `sha256:<hex>`; assets uploaded before June 2025 have none.
    #[serde(default)]
    digest: Option<String>,
    #[serde(default)]
    state: Option<String>,
}

impl GithubSource {
    /// Opens `OWNER/NAME` at `settings.github_api`.
    ///
    /// # Errors
    /// [`FetchError::Setting`].
    pub fn open(
        name: &str,
        settings: &SourceSettings,
        token: Option<Token>,
        ports: FetchPorts,
    ) -> Result<Self, FetchError> {
        let owner_and_name = name.split_once('/').filter(|(owner, name)| is_name(owner) && is_name(name));
        if owner_and_name.is_none() {
            let reason = format!("`{}` is not OWNER/NAME", name.escape_default());
            return Err(FetchError::Setting { key: "github", reason });
        }
        let base = match Base::parse(&settings.github_api, token.as_ref())? {
            Base::Http { url, .. } => {
                Base::Http { url, accept: Some("application/octet-stream"), bucket: None }
            }
            Base::Directory { .. } => {
                let reason = "it is an http or https URL".to_owned();
                return Err(FetchError::Setting { key: "github_api", reason });
            }
        };
        let releases = RelativePath::new(&format!("repos/{name}/releases"))?;
        let fetcher = Fetcher::of_bases(vec![base], settings, token, ports)?;
        Ok(Self { fetcher, releases, name: name.to_owned() })
    }

    fn page(&self, number: usize, known: Option<&Tag>) -> Result<Got, FetchError> {
        let refine = move |mut request: Request| {
            request.url.set_query(Some(&format!("per_page={PER_PAGE}&page={number}")));
            request.headers.retain(|(name, _)| *name != header::ACCEPT);
            request.headers.push((header::ACCEPT, "application/vnd.github+json".to_owned()));
            let version = HeaderName::from_static("x-github-api-version");
            request.headers.push((version, "2022-11-28".to_owned()));
            request
        };
        let target = Target { path: self.releases.clone(), refine, limit: PAGE_BYTES_MAX };
        self.fetcher.get_as(target, known)
    }

    fn missing(&self) -> FetchError {
        FetchError::Answer {
            url: format!("{}{}", self.fetcher.shared.bases[0], self.releases.as_str()),
            source: cutover_core::fetch::answer::Refusal::Missing(404),
        }
    }

    fn offer(&self, release: &Release, asset: &Asset) -> Offer {
        let hex = asset.digest.as_deref().and_then(|digest| digest.strip_prefix("sha256:"));
        Offer {
            name: asset.name.clone(),
            size_bytes: asset.size,
            sha256: hex.and_then(|hex| hex.parse::<Digest>().ok()),
            release: Some(release.tag_name.clone()),
            prerelease: release.prerelease,
            place: OfferPlace::Remote(format!("{}/assets/{}", self.releases.as_str(), asset.id)),
        }
    }
}

/// What GitHub allows in the name of an owner or a repository.
fn is_name(text: &str) -> bool {
    !matches!(text, "" | "." | "..")
        && text.len() <= 100
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

impl Source for GithubSource {
    fn describe(&self) -> String {
        format!("GitHub releases of {}", self.name)
    }

    fn get(&self, path: &RelativePath, limit: u64, known: Option<&Tag>) -> Result<Got, FetchError> {
        self.fetcher.get(path, limit, known)
    }

    /// The first page decides whether anything changed: new releases appear there.
    fn listing(&self, known: Option<Listing>) -> Result<Option<Listing>, FetchError> {
        let mut listing = Listing::default();
        for number in 1..=PAGES_MAX {
            let known_tag = known.as_ref().filter(|_| number == 1).and_then(|known| known.tag.as_ref());
            let bytes = match self.page(number, known_tag)? {
                Got::Unchanged => return Ok(known),
                Got::Missing => return Err(self.missing()),
                Got::Content { bytes, tag } => {
                    if number == 1 {
                        listing.tag = tag;
                    }
                    bytes
                }
            };
            let page: Vec<Release> = serde_json::from_slice(&bytes).map_err(|_| FetchError::Malformed {
                url: format!("{}{}", self.fetcher.shared.bases[0], self.releases.as_str()),
                expected: "a list of releases",
            })?;
            let last = page.len() < PER_PAGE;
            for release in page.iter().filter(|release| !release.draft) {
                let uploaded =
                    |asset: &&Asset| asset.state.as_deref().is_none_or(|state| state == "uploaded");
                let bundles = release
                    .assets
                    .iter()
                    .filter(uploaded)
                    .filter(|asset| asset.name.ends_with(BUNDLE_SUFFIX));
                listing.offers.extend(bundles.map(|asset| self.offer(release, asset)));
            }
            if last {
                break;
            }
        }
        Ok(Some(listing))
    }

    fn fetcher(&self) -> &Fetcher {
        &self.fetcher
    }
}
