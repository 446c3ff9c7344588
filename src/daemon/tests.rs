//! The daemon from outside, in one process: a real server on a free port, real certificates, real clients.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose, SanType};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::sync::watch;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};
use tonic_types::StatusExt;

use super::{ServeConfig, ServeError, serve_until};
use crate::api::v1;
use crate::api::v1::virtual_machine_service_client::VirtualMachineServiceClient;

type Issuer = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Issuer {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A certificate with its key, signed by `issuer`.
fn leaf(issuer: &Issuer, san: SanType, change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![san];
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    (params.signed_by(&key, issuer).unwrap().pem(), key.serialize_pem())
}

fn spiffe(path: &str) -> SanType {
    SanType::URI(format!("spiffe://ostler.local/{path}").as_str().try_into().unwrap())
}

struct Daemon {
    dir: tempfile::TempDir,
    authority: Issuer,
    config: ServeConfig,
    ending: watch::Sender<bool>,
    serving: Option<tokio::task::JoinHandle<Result<(), ServeError>>>,
    port: u16,
}

impl Daemon {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = authority();
        let certs = dir.path().join("data/certs");
        std::fs::create_dir_all(&certs).unwrap();
        let (certificate, key) = leaf(&authority, SanType::DnsName("localhost".try_into().unwrap()), |_| {});
        std::fs::write(certs.join("ca.pem"), authority.pem()).unwrap();
        std::fs::write(certs.join("server.pem"), certificate).unwrap();
        std::fs::write(certs.join("server.key"), key).unwrap();
        let config = ServeConfig {
            listen: "127.0.0.1:0".parse().unwrap(),
            data_dir: dir.path().join("data"),
            run_dir: dir.path().join("run"),
            jail: None,
            // None is started here.
            vmm: Some("/bin/true".into()),
            ..ServeConfig::default()
        };
        let mut daemon = Self { dir, authority, config, ending: watch::Sender::new(false), serving: None, port: 0 };
        daemon.serve().await;
        daemon
    }

    async fn serve(&mut self) {
        self.ending = watch::Sender::new(false);
        let (ready, address) = tokio::sync::oneshot::channel();
        let (config, ending) = (self.config.clone(), self.ending.subscribe());
        let serving = serve_until(config, ending, move |address| ready.send(address).unwrap());
        self.serving = Some(tokio::spawn(serving));
        self.port = address.await.expect("the daemon serves").port();
    }

    /// Ends the server as SIGTERM would.
    async fn end(&mut self) {
        self.ending.send_replace(true);
        self.serving.take().unwrap().await.unwrap().unwrap();
    }

    fn data(&self) -> &Path {
        &self.config.data_dir
    }

    async fn client_with(&self, identity: Option<(String, String)>) -> Client {
        VirtualMachineServiceClient::new(self.channel(identity))
    }

    async fn client(&self, path: &str) -> Client {
        self.client_with(Some(leaf(&self.authority, spiffe(path), |_| {}))).await
    }

    fn channel(&self, identity: Option<(String, String)>) -> Channel {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.der().clone()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut tls = match identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let certificate = rustls_pki_types::pem::PemObject::from_pem_slice(certificate.as_bytes()).unwrap();
                let key: PrivatePkcs8KeyDer = rustls_pki_types::pem::PemObject::from_pem_slice(key.as_bytes()).unwrap();
                let chain: Vec<CertificateDer> = vec![certificate];
                builder.with_client_auth_cert(chain, PrivateKeyDer::from(key)).unwrap()
            }
        };
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let (tls, port) = (tokio_rustls::TlsConnector::from(Arc::new(tls)), self.port);
        Endpoint::from_static("http://localhost").connect_with_connector_lazy(tower::service_fn(move |_| {
            let tls = tls.clone();
            async move {
                let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
                let stream = tls.connect(ServerName::try_from("localhost").unwrap(), stream).await?;
                Ok::<_, std::io::Error>(TokioIo::new(stream))
            }
        }))
    }
}

type Client = VirtualMachineServiceClient<Channel>;

async fn list(client: &mut Client) -> Result<usize, tonic::Status> {
    let response = client.list_virtual_machines(v1::ListVirtualMachinesRequest::default()).await?;
    Ok(response.into_inner().virtual_machines.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn only_verified_certificates_get_in_and_only_named_ones_are_served() {
    let mut daemon = Daemon::start().await;
    assert_eq!(list(&mut daemon.client("tenant/acme").await).await.unwrap(), 0);
    assert_eq!(list(&mut daemon.client("operator/admin").await).await.unwrap(), 0);

    let other = authority();
    let past = |params: &mut CertificateParams| {
        params.not_before = rcgen::date_time_ymd(2000, 1, 1);
        params.not_after = rcgen::date_time_ymd(2001, 1, 1);
    };
    let future = |params: &mut CertificateParams| params.not_before = rcgen::date_time_ymd(2999, 1, 1);
    let refused_by_tls = [
        ("no certificate", None),
        ("another authority", Some(leaf(&other, spiffe("tenant/acme"), |_| {}))),
        ("expired", Some(leaf(&daemon.authority, spiffe("tenant/acme"), past))),
        ("not yet valid", Some(leaf(&daemon.authority, spiffe("tenant/acme"), future))),
    ];
    for (case, identity) in refused_by_tls {
        let error = list(&mut daemon.client_with(identity).await).await.unwrap_err();
        assert!(error.get_error_details().error_info().is_none(), "{case}: got through to the service: {error:?}");
        assert_ne!(error.code(), Code::Unauthenticated, "{case}");
    }

    let dns = SanType::DnsName("acme.example".try_into().unwrap());
    let two = |params: &mut CertificateParams| params.subject_alt_names.push(spiffe("operator/root"));
    let as_authority = |params: &mut CertificateParams| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let evil = SanType::URI("spiffe://evil.example/operator/root".try_into().unwrap());
    let nobody = [
        ("no id", leaf(&daemon.authority, dns, |_| {})),
        ("two ids", leaf(&daemon.authority, spiffe("tenant/acme"), two)),
        ("another trust domain", leaf(&daemon.authority, evil, |_| {})),
        ("no role", leaf(&daemon.authority, spiffe("acme"), |_| {})),
        ("no name", leaf(&daemon.authority, spiffe("tenant/"), |_| {})),
    ];
    for (case, identity) in nobody {
        let error = list(&mut daemon.client_with(Some(identity.clone())).await).await.unwrap_err();
        assert_eq!(error.code(), Code::Unauthenticated, "{case}: {error:?}");
        assert_eq!(error.get_error_details().error_info().unwrap().reason, "BAD_IDENTITY", "{case}");
        let mut health = tonic_health::pb::health_client::HealthClient::new(daemon.channel(Some(identity)));
        let error = health.check(tonic_health::pb::HealthCheckRequest::default()).await.unwrap_err();
        assert_eq!(error.code(), Code::Unauthenticated, "{case}, health");
    }
    // Refused by TLS or by name, as the library sees it; not served in any case.
    let signing = leaf(&daemon.authority, spiffe("tenant/acme"), as_authority);
    assert!(list(&mut daemon.client_with(Some(signing)).await).await.is_err());
    daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_reflection_answer_callers() {
    let mut daemon = Daemon::start().await;
    let identity = || Some(leaf(&daemon.authority, spiffe("tenant/acme"), |_| {}));
    let mut health = tonic_health::pb::health_client::HealthClient::new(daemon.channel(identity()));
    for service in ["", "ostler.v1.VirtualMachineService", "ostler.v1.PluginService"] {
        let request = tonic_health::pb::HealthCheckRequest { service: service.into() };
        assert_eq!(health.check(request).await.unwrap().into_inner().status, 1, "{service}");
    }
    daemon.end().await;
}

fn spec(vcpus: u32) -> v1::VirtualMachineSpec {
    v1::VirtualMachineSpec {
        vcpus,
        memory_mib: 128,
        boot: Some(v1::BootSpec { kernel: "vmlinux".into(), ..Default::default() }),
        ..Default::default()
    }
}

fn registration(name: &str, spec: v1::VirtualMachineSpec) -> v1::RegisterVirtualMachineRequest {
    let vm = v1::VirtualMachine { name: name.into(), spec: Some(spec), ..Default::default() };
    v1::RegisterVirtualMachineRequest { virtual_machine: Some(vm), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_plugin_nothing_is_admitted_and_the_error_says_what_to_do() {
    let mut daemon = Daemon::start().await;
    std::fs::write(daemon.data().join("images/vmlinux"), b"kernel").unwrap();
    let mut acme = daemon.client("tenant/acme").await;
    let error = acme.register_virtual_machine(registration("tenants/acme/vms/web", spec(1))).await.unwrap_err();
    assert_eq!(error.code(), Code::PermissionDenied);
    let details = error.get_error_details();
    let info = details.error_info().unwrap();
    assert_eq!((info.reason.as_str(), info.metadata["code"].as_str()), ("POLICY_DENIED", "policy.no-opinion"));
    assert!(error.message().contains("ostler plugin load"), "{}", error.message());
    assert_eq!(list(&mut acme).await.unwrap(), 0);
    daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_name_their_field_and_tenants_stay_apart() {
    let mut daemon = Daemon::start().await;
    let mut acme = daemon.client("tenant/acme").await;
    let mut fields = BTreeMap::new();
    for (field, name, spec) in [
        ("name", "web", spec(1)),
        ("name", "tenants/acme/vms/a/b", spec(1)),
        ("spec.vcpus", "tenants/acme/vms/web", spec(0)),
        ("spec.vcpus", "tenants/acme/vms/web", spec(10_000)),
        ("spec.boot", "tenants/acme/vms/web", v1::VirtualMachineSpec { boot: None, ..spec(1) }),
        ("spec.memory_mib", "tenants/acme/vms/web", v1::VirtualMachineSpec { memory_mib: 1, ..spec(1) }),
    ] {
        let error = acme.register_virtual_machine(registration(name, spec)).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{field}: {error:?}");
        let details = error.get_error_details();
        fields.insert(details.error_info().unwrap().metadata["field"].clone(), error.message().to_owned());
        assert!(fields.contains_key(field), "{field} is not among {fields:?}");
    }
    let other = acme.register_virtual_machine(registration("tenants/bob/vms/web", spec(1))).await.unwrap_err();
    assert_eq!(other.code(), Code::PermissionDenied);
    assert_eq!(other.get_error_details().error_info().unwrap().reason, "NOT_ALLOWED");
    let all = v1::ListVirtualMachinesRequest { parent: "tenants/-".into(), ..Default::default() };
    assert_eq!(acme.list_virtual_machines(all.clone()).await.unwrap_err().code(), Code::PermissionDenied);
    daemon.client("operator/admin").await.list_virtual_machines(all).await.unwrap();
    let get = |name: &str| v1::GetVirtualMachineRequest { name: name.into() };
    let own = acme.get_virtual_machine(get("tenants/acme/vms/x")).await.unwrap_err();
    let others = acme.get_virtual_machine(get("tenants/bob/vms/x")).await.unwrap_err();
    assert_eq!(own.code(), Code::NotFound);
    assert_eq!((own.message(), own.details()), (others.message(), others.details()));
    daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_daemon_on_the_same_data_is_refused() {
    let mut daemon = Daemon::start().await;
    let (_ending, is_ending) = watch::channel(false);
    let second = serve_until(daemon.config.clone(), is_ending, |_| ()).await.unwrap_err();
    assert!(second.to_string().contains("another daemon"), "{second}");
    daemon.end().await;
    assert!(daemon.dir.path().exists());
    daemon.serve().await;
    daemon.end().await;
}
