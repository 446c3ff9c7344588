//! Clients: one caller with one certificate, blocking calls, errors as the daemon sent them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use ostler::api::v1;
use ostler::api::v1::decision_record::enforcement::State as Enforced;
use ostler::api::v1::decision_service_client::DecisionServiceClient;
use ostler::api::v1::host_service_client::HostServiceClient;
use ostler::api::v1::operation_service_client::OperationServiceClient;
use ostler::api::v1::plugin_service_client::PluginServiceClient;
use ostler::api::v1::tenant_service_client::TenantServiceClient;
use ostler::api::v1::virtual_machine_service_client::VirtualMachineServiceClient;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};
use tonic_types::StatusExt;

use super::certs::Identity;
use super::wait::{SOON, until};

/// Longest that a call may take; the daemon's own limits are shorter.
const CALL: Duration = Duration::from_secs(240);

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
});

/// Runs a future to its end, with a limit that no test should reach.
pub fn wait<T>(future: impl Future<Output = T>) -> T {
    RUNTIME.block_on(async { tokio::time::timeout(CALL, future).await }).expect("a call hangs")
}

/// Runs a future beside the test.
pub fn spawn(future: impl Future<Output = ()> + Send + 'static) {
    RUNTIME.spawn(future);
}

/// TLS as clients of the daemon speak it, with `identity` or without a certificate.
pub fn tls(ca: &Path, identity: Option<Identity>) -> TlsConnector {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    let builder = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match identity {
        Some(identity) => builder.with_client_auth_cert(identity.chain, identity.key).unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    TlsConnector::from(Arc::new(config))
}

/// Connects to the daemon at `port`, with `identity` or without a certificate. TLS 1.3 reports a refused certificate
/// only with the first call.
pub fn connect(port: u16, ca: &Path, identity: Option<Identity>) -> Result<Channel, tonic::transport::Error> {
    let tls = tls(ca, identity);
    let connector = tower::service_fn(move |_: Uri| {
        let tls = tls.clone();
        async move {
            let stream = TcpStream::connect(("127.0.0.1", port)).await?;
            // A call is two small frames: the second would wait 40 ms for the first one's acknowledgement.
            stream.set_nodelay(true)?;
            tls.connect(ServerName::try_from("localhost").unwrap(), stream).await.map(TokioIo::new)
        }
    });
    // HTTP/2's own default (RFC 9113 §6.9.2): a reader that sleeps must be noticed after kilobytes, not megabytes.
    let endpoint = Endpoint::from_static("http://localhost").initial_stream_window_size(65_535);
    wait(endpoint.connect_with_connector(connector))
}

/// The certificate that the daemon at `port` shows, whoever signed it.
pub fn served_certificate(port: u16) -> Vec<u8> {
    #[derive(Debug)]
    struct Anyone;
    impl ServerCertVerifier for Anyone {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, rustls::Error> {
            Ok(ServerCertVerified::assertion())
        }
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Ok(HandshakeSignatureValid::assertion())
        }
        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Ok(HandshakeSignatureValid::assertion())
        }
        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
        }
    }
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tls = TlsConnector::from(Arc::new(config));
    wait(async {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let stream = tls.connect(ServerName::try_from("localhost").unwrap(), stream).await.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    })
}

/// A caller with a certificate.
#[derive(Clone)]
pub struct Caller {
    /// The tenant that its short VM names belong to.
    pub tenant: String,
    pub vms: VirtualMachineServiceClient<Channel>,
    pub plugins: PluginServiceClient<Channel>,
    pub decisions: DecisionServiceClient<Channel>,
    pub host: HostServiceClient<Channel>,
    pub tenants: TenantServiceClient<Channel>,
    pub operations: OperationServiceClient<Channel>,
}

type Answer<T> = Result<T, Status>;

impl Caller {
    pub fn new(channel: Channel, tenant: &str) -> Self {
        Self {
            tenant: tenant.to_owned(),
            vms: VirtualMachineServiceClient::new(channel.clone()),
            plugins: PluginServiceClient::new(channel.clone()),
            decisions: DecisionServiceClient::new(channel.clone()),
            host: HostServiceClient::new(channel.clone()),
            tenants: TenantServiceClient::new(channel.clone()),
            operations: OperationServiceClient::new(channel),
        }
    }

    /// `web` as `tenants/<own tenant>/vms/web`; a full name stays as it is.
    pub fn name(&self, vm: &str) -> String {
        if vm.contains('/') { vm.to_owned() } else { format!("tenants/{}/vms/{vm}", self.tenant) }
    }

    pub fn register(&self, vm: &str, spec: v1::VirtualMachineSpec) -> Answer<v1::VirtualMachine> {
        self.register_exactly(&self.name(vm), Some(spec))
    }

    pub fn register_exactly(&self, name: &str, spec: Option<v1::VirtualMachineSpec>) -> Answer<v1::VirtualMachine> {
        let vm = v1::VirtualMachine { name: name.to_owned(), spec, ..Default::default() };
        let request = v1::RegisterVirtualMachineRequest { virtual_machine: Some(vm), ..Default::default() };
        wait(self.vms.clone().register_virtual_machine(request)).map(tonic::Response::into_inner)
    }

    pub fn get(&self, vm: &str) -> Answer<v1::VirtualMachine> {
        let request = v1::GetVirtualMachineRequest { name: self.name(vm) };
        wait(self.vms.clone().get_virtual_machine(request)).map(tonic::Response::into_inner)
    }

    pub fn list(&self, parent: &str) -> Answer<Vec<v1::VirtualMachine>> {
        let request = v1::ListVirtualMachinesRequest { parent: parent.to_owned(), ..Default::default() };
        wait(self.vms.clone().list_virtual_machines(request)).map(|list| list.into_inner().virtual_machines)
    }

    pub fn usages(&self, parent: &str) -> Answer<Vec<v1::VirtualMachineUsage>> {
        let request = v1::ListVirtualMachineUsagesRequest { parent: parent.to_owned(), ..Default::default() };
        wait(self.vms.clone().list_virtual_machine_usages(request)).map(|list| list.into_inner().usages)
    }

    pub fn start(&self, vm: &str) -> Answer<v1::VirtualMachine> {
        let request = v1::StartVirtualMachineRequest { name: self.name(vm), ..Default::default() };
        wait(self.vms.clone().start_virtual_machine(request)).map(tonic::Response::into_inner)
    }

    pub fn inspect_jail(&self, vm: &str) -> Answer<v1::VirtualMachineJail> {
        let request = v1::InspectVirtualMachineJailRequest { name: self.name(vm) };
        wait(self.vms.clone().inspect_virtual_machine_jail(request)).map(tonic::Response::into_inner)
    }

    /// `grace_ms` as in the API: unset is 30 s, zero is by force.
    pub fn stop(&self, vm: &str, grace_ms: Option<u64>) -> Answer<v1::VirtualMachine> {
        let grace = grace_ms.map(Duration::from_millis).map(ostler::api::convert::duration_to_proto);
        let request = v1::StopVirtualMachineRequest { name: self.name(vm), grace, ..Default::default() };
        wait(self.vms.clone().stop_virtual_machine(request)).map(tonic::Response::into_inner)
    }

    pub fn stats(&self, vm: &str) -> Answer<v1::VirtualMachineStats> {
        let request = v1::GetVirtualMachineStatsRequest { name: self.name(vm) };
        wait(self.vms.clone().get_virtual_machine_stats(request)).map(tonic::Response::into_inner)
    }

    /// `grace_ms` as in [`Caller::stop`].
    pub fn reboot(&self, vm: &str, grace_ms: Option<u64>) -> Answer<v1::VirtualMachine> {
        let grace = grace_ms.map(Duration::from_millis).map(ostler::api::convert::duration_to_proto);
        let request = v1::RebootVirtualMachineRequest { name: self.name(vm), grace, ..Default::default() };
        wait(self.vms.clone().reboot_virtual_machine(request)).map(tonic::Response::into_inner)
    }

    pub fn pause(&self, vm: &str) -> Answer<v1::VirtualMachine> {
        let request = v1::PauseVirtualMachineRequest { name: self.name(vm), ..Default::default() };
        wait(self.vms.clone().pause_virtual_machine(request)).map(tonic::Response::into_inner)
    }

    pub fn resume(&self, vm: &str) -> Answer<v1::VirtualMachine> {
        let request = v1::ResumeVirtualMachineRequest { name: self.name(vm), ..Default::default() };
        wait(self.vms.clone().resume_virtual_machine(request)).map(tonic::Response::into_inner)
    }

    pub fn press_power_button(&self, vm: &str) -> Answer<v1::VirtualMachine> {
        let request = v1::PressPowerButtonRequest { name: self.name(vm), ..Default::default() };
        wait(self.vms.clone().press_power_button(request)).map(tonic::Response::into_inner)
    }

    pub fn nmi(&self, vm: &str) -> Answer<v1::VirtualMachine> {
        let request = v1::InjectNmiRequest { name: self.name(vm), ..Default::default() };
        wait(self.vms.clone().inject_nmi(request)).map(tonic::Response::into_inner)
    }

    pub fn destroy(&self, vm: &str, force: bool) -> Answer<()> {
        let request = v1::DestroyVirtualMachineRequest { name: self.name(vm), force, ..Default::default() };
        wait(self.vms.clone().destroy_virtual_machine(request)).map(drop)
    }

    pub fn attach(&self, vm: &str, device: v1::attach_device_request::Device) -> Answer<v1::VirtualMachine> {
        let request = v1::AttachDeviceRequest { name: self.name(vm), device: Some(device), ..Default::default() };
        wait(self.vms.clone().attach_device(request)).map(tonic::Response::into_inner)
    }

    /// `timeout_ms` as in the API: unset is 10 s.
    pub fn detach(&self, vm: &str, id: &str, timeout_ms: Option<u64>, force: bool) -> Answer<v1::VirtualMachine> {
        let timeout = timeout_ms.map(Duration::from_millis).map(ostler::api::convert::duration_to_proto);
        let request = v1::DetachDeviceRequest {
            name: self.name(vm),
            device_id: id.to_owned(),
            timeout,
            force,
            ..Default::default()
        };
        wait(self.vms.clone().detach_device(request)).map(tonic::Response::into_inner)
    }

    pub fn watch(&self, parent: &str) -> Answer<Watch> {
        self.resume_watch(parent, "")
    }

    /// Goes on with a watch behind `resume_token`.
    pub fn resume_watch(&self, parent: &str, resume_token: &str) -> Answer<Watch> {
        let request =
            v1::WatchVirtualMachinesRequest { parent: parent.to_owned(), resume_token: resume_token.to_owned() };
        wait(self.vms.clone().watch_virtual_machines(request)).map(|stream| Watch(stream.into_inner()))
    }

    /// What the tenant may have and has.
    pub fn tenant(&self, name: &str) -> Answer<v1::Tenant> {
        let request = v1::GetTenantRequest { name: format!("tenants/{name}") };
        wait(self.tenants.clone().get_tenant(request)).map(tonic::Response::into_inner)
    }

    /// Loads `bytes` as `name`, such as `operator/plugins/admission`.
    pub fn load(&self, name: &str, bytes: &[u8], settings: &[(&str, &str)]) -> Answer<v1::Plugin> {
        let settings = settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let header = v1::load_plugin_request::Header { name: name.to_owned(), settings, ..Default::default() };
        self.load_as(header, bytes)
    }

    /// Loads `bytes` as `header` says.
    pub fn load_as(&self, header: v1::load_plugin_request::Header, bytes: &[u8]) -> Answer<v1::Plugin> {
        use v1::load_plugin_request::Part;
        let chunks = bytes.chunks(64 << 10).map(|chunk| Part::Chunk(chunk.to_vec()));
        self.load_parts(std::iter::once(Part::Header(header)).chain(chunks).collect())
    }

    pub fn load_parts(&self, parts: Vec<v1::load_plugin_request::Part>) -> Answer<v1::Plugin> {
        let parts = parts.into_iter().map(|part| v1::LoadPluginRequest { part: Some(part) });
        let request = Request::new(tokio_stream::iter(parts.collect::<Vec<_>>()));
        wait(self.plugins.clone().load_plugin(request)).map(tonic::Response::into_inner)
    }

    /// Has an alias name a version: what is bound, or `version`.
    pub fn alias(&self, name: &str, alias: &str, version: &str) -> Answer<v1::Plugin> {
        let (name, alias, version) = (name.to_owned(), alias.to_owned(), version.to_owned());
        let request = v1::SetPluginAliasRequest { name, alias, version, ..Default::default() };
        wait(self.plugins.clone().set_plugin_alias(request)).map(tonic::Response::into_inner)
    }

    /// Has a plugin follow an alias, or none.
    pub fn follow(&self, name: &str, alias: &str) -> Answer<v1::Plugin> {
        let request =
            v1::FollowPluginAliasRequest { name: name.to_owned(), alias: alias.to_owned(), ..Default::default() };
        wait(self.plugins.clone().follow_plugin_alias(request)).map(tonic::Response::into_inner)
    }

    /// Binds an earlier version: the last one, or that of `digest`, or of an alias.
    pub fn roll_back(&self, name: &str, digest: &str) -> Answer<v1::Plugin> {
        let request =
            v1::RollBackPluginRequest { name: name.to_owned(), digest: digest.to_owned(), ..Default::default() };
        wait(self.plugins.clone().roll_back_plugin(request)).map(tonic::Response::into_inner)
    }

    pub fn unload(&self, name: &str, force: bool) -> Answer<()> {
        let request = v1::UnloadPluginRequest { name: name.to_owned(), force, ..Default::default() };
        wait(self.plugins.clone().unload_plugin(request)).map(drop)
    }

    pub fn plugins(&self, parent: &str) -> Answer<Vec<v1::Plugin>> {
        let request = v1::ListPluginsRequest { parent: parent.to_owned(), ..Default::default() };
        wait(self.plugins.clone().list_plugins(request)).map(|list| list.into_inner().plugins)
    }
}

impl Caller {
    /// SR-IOV network cards of the node.
    pub fn devices(&self) -> Answer<Vec<v1::PhysicalFunction>> {
        let request = v1::ListHostDevicesRequest::default();
        wait(self.host.clone().list_host_devices(request)).map(|list| list.into_inner().physical_functions)
    }

    /// NVMe controllers of the node.
    pub fn nvme_controllers(&self) -> Answer<Vec<v1::NvmeHostController>> {
        let request = v1::ListHostDevicesRequest::default();
        wait(self.host.clone().list_host_devices(request)).map(|list| list.into_inner().nvme_controllers)
    }

    /// Has secondary controllers made.
    pub fn provision_nvme(&self, address: &str, vfs: u32) -> Answer<v1::NvmeHostController> {
        let request = v1::ProvisionNvmeControllerRequest { address: address.to_owned(), vfs, ..Default::default() };
        let answer = wait(self.host.clone().provision_nvme_controller(request));
        answer.map(|provisioned| provisioned.into_inner().controller.unwrap())
    }

    /// Has a virtual function released.
    pub fn release_device(&self, address: &str) -> Answer<v1::DeviceLease> {
        self.release_nvme(address, 0)
    }

    /// The same, or (`namespace_id` is not 0) a namespace of an NVMe controller.
    pub fn release_nvme(&self, address: &str, namespace_id: u32) -> Answer<v1::DeviceLease> {
        let address = address.to_owned();
        let request = v1::ReleaseHostDeviceRequest { address, namespace_id, ..Default::default() };
        wait(self.host.clone().release_host_device(request)).map(|released| released.into_inner().lease.unwrap())
    }
}

impl Caller {
    /// What store and host do not agree about.
    pub fn check_host(&self) -> Answer<Vec<v1::HostFinding>> {
        wait(self.host.clone().check_host(v1::CheckHostRequest {})).map(|found| found.into_inner().findings)
    }

    /// The same, after what can be repaired was.
    pub fn repair_host(&self, request_id: &str) -> Answer<Vec<v1::HostFinding>> {
        let request = v1::RepairHostRequest { request_id: request_id.to_owned(), ..Default::default() };
        wait(self.host.clone().repair_host(request)).map(|found| found.into_inner().findings)
    }
}

impl Caller {
    /// Has the guest told of its disk's length, after it was grown to `size_bytes` if that is not 0. Gives the length.
    pub fn resize_disk(&self, vm: &str, disk: &str, size_bytes: u64) -> Answer<u64> {
        let (name, disk) = (self.name(vm), disk.to_owned());
        let request = v1::ResizeVirtualMachineDiskRequest { name, disk, size_bytes, ..Default::default() };
        wait(self.vms.clone().resize_virtual_machine_disk(request)).map(|answer| answer.into_inner().size_bytes)
    }

    /// Has the guest keep so much of its memory; 0: all.
    pub fn keep(&self, vm: &str, keep_mib: u64) -> Answer<v1::VirtualMachine> {
        let request = v1::SetVirtualMachineBalloonRequest { name: self.name(vm), keep_mib, ..Default::default() };
        wait(self.vms.clone().set_virtual_machine_balloon(request)).map(tonic::Response::into_inner)
    }

    /// Gives a device other limits.
    pub fn limit(&self, vm: &str, device: &str, limits: v1::RateLimits) -> Answer<v1::VirtualMachine> {
        let (name, device) = (self.name(vm), device.to_owned());
        let limits = Some(limits);
        let request = v1::LimitVirtualMachineDeviceRequest { name, device, limits, ..Default::default() };
        wait(self.vms.clone().limit_virtual_machine_device(request)).map(tonic::Response::into_inner)
    }
}

impl Caller {
    /// Decisions on record that `request` asks for, all pages of it.
    pub fn decisions(&self, mut request: v1::ListDecisionsRequest) -> Answer<Vec<v1::DecisionRecord>> {
        let mut found = Vec::new();
        loop {
            let page = wait(self.decisions.clone().list_decisions(request.clone()))?.into_inner();
            found.extend(page.decisions);
            if page.next_page_token.is_empty() {
                return Ok(found);
            }
            request.page_token = page.next_page_token;
        }
    }

    /// All that the caller may see, once what was done about each is on record too: that follows the decision to disk,
    /// and no caller is made to wait for it.
    pub fn settled_decisions(&self) -> Vec<v1::DecisionRecord> {
        let is_told = |record: &v1::DecisionRecord| record.enforcement.as_ref().unwrap().state() != Enforced::Pending;
        until("what was done is on record", SOON, || {
            let all = self.decisions(v1::ListDecisionsRequest::default()).unwrap();
            Some(all).filter(|all| all.iter().all(is_told))
        })
    }

    pub fn decision(&self, name: &str) -> Answer<v1::DecisionRecord> {
        let request = v1::GetDecisionRequest { name: name.to_owned() };
        wait(self.decisions.clone().get_decision(request)).map(tonic::Response::into_inner)
    }

    pub fn explain(&self, name: &str) -> Answer<v1::DecisionExplanation> {
        let request = v1::ExplainDecisionRequest { name: name.to_owned() };
        wait(self.decisions.clone().explain_decision(request)).map(tonic::Response::into_inner)
    }

    pub fn verify(&self, parent: &str) -> Answer<Vec<v1::verify_decisions_response::Chain>> {
        let request = v1::VerifyDecisionsRequest { parent: parent.to_owned() };
        wait(self.decisions.clone().verify_decisions(request)).map(|verified| verified.into_inner().chains)
    }

    /// A whole export.
    pub fn export(&self, parent: &str) -> Answer<Vec<u8>> {
        let request = v1::ExportDecisionsRequest { parent: parent.to_owned() };
        wait(async {
            let mut pieces = self.decisions.clone().export_decisions(request).await?.into_inner();
            let mut lines = Vec::new();
            while let Some(piece) = pieces.message().await? {
                lines.extend(piece.lines);
            }
            Ok(lines)
        })
    }
}

/// A watch, read change by change.
pub struct Watch(pub tonic::Streaming<v1::WatchVirtualMachinesResponse>);

impl Watch {
    /// The next message that is no bookmark; panics if none comes in time.
    pub fn next(&mut self) -> v1::WatchVirtualMachinesResponse {
        loop {
            let message = self.next_message();
            if !message.bookmark {
                return message;
            }
        }
    }

    /// The next message, whatever it is.
    pub fn next_message(&mut self) -> v1::WatchVirtualMachinesResponse {
        wait(self.0.message()).expect("the watch broke").expect("the watch ended")
    }

    /// Reads to the end: `None` if the daemon ended the watch, else how it broke.
    pub fn end(&mut self) -> Option<Status> {
        loop {
            match wait(self.0.message()) {
                Ok(Some(_)) => {}
                Ok(None) => return None,
                Err(status) => return Some(status),
            }
        }
    }

    /// Reads until the VM is in `state`, and gives all states that it was seen in, without repetitions.
    pub fn states_until(&mut self, name: &str, state: v1::virtual_machine::State) -> Vec<&'static str> {
        let mut seen: Vec<&'static str> = Vec::new();
        let mut last_revision = 0;
        while seen.last() != Some(&state.as_str_name()) {
            let change = self.next();
            assert!(change.initial || change.revision > last_revision, "revisions must grow: {change:?}");
            last_revision = change.revision;
            let vm = change.virtual_machine.expect("a change without its VM");
            if vm.name == name && seen.last() != Some(&vm.state().as_str_name()) {
                seen.push(vm.state().as_str_name());
            }
        }
        seen
    }
}

/// The machine-readable part of an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorFacts {
    pub code: tonic::Code,
    pub reason: String,
    pub metadata: BTreeMap<String, String>,
    pub message: String,
}

/// Reads it; every error of the daemon has it.
pub fn facts(status: &Status) -> ErrorFacts {
    let info = status.get_details_error_info().unwrap_or_else(|| panic!("an error without ErrorInfo: {status:?}"));
    assert_eq!(info.domain, "ostler", "{status:?}");
    ErrorFacts {
        code: status.code(),
        reason: info.reason,
        metadata: info.metadata.into_iter().collect(),
        message: status.message().to_owned(),
    }
}
