//! A DNS server whose records a test changes while it runs.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;
use hickory_server::{
    Server,
    net::{runtime::Time, xfer::Protocol},
    proto::{
        op::{Header, HeaderCounts, Metadata, ResponseCode},
        rr::{
            Name, RData, Record, RecordType,
            rdata::{CNAME, SOA, SRV},
        },
    },
    server::{Request, RequestHandler, ResponseHandler, ResponseInfo},
    zone_handler::MessageResponseBuilder,
};
use tokio::{
    net::{TcpListener, UdpSocket},
    time::Instant,
};

/// A running server, on one port for UDP and TCP.
pub(crate) struct DnsServer {
    pub(crate) address: SocketAddr,
    zone: Zone,
    server: Server<Zone>,
}

#[derive(Clone, Default)]
struct Zone(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    records: HashMap<(Name, RecordType), Vec<Record>>,
    troubles: HashMap<RecordType, Trouble>,
    questions: Vec<Question>,
}

/// What the server does in place of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    ServFail,
    Silence,
}

/// A question that was asked.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    pub(crate) name: String,
    pub(crate) kind: RecordType,
    pub(crate) is_tcp: bool,
    pub(crate) at: Instant,
}

impl DnsServer {
    pub(crate) async fn start() -> Self {
        // The port that is free for UDP may be taken for TCP.
        for _ in 0..20 {
            if let Some(server) = Self::start_at("127.0.0.1:0".parse().unwrap(), Zone::default()).await {
                return server;
            }
        }
        panic!("no port is free for UDP and TCP");
    }

    async fn start_at(address: SocketAddr, zone: Zone) -> Option<Self> {
        let udp = UdpSocket::bind(address).await.ok()?;
        let address = udp.local_addr().unwrap();
        let tcp = TcpListener::bind(address).await.ok()?;
        let mut server = Server::new(zone.clone());
        server.register_socket(udp);
        server.register_listener(tcp, Duration::from_secs(5), 16);
        Some(Self { address, zone, server })
    }

    /// Stops the server. The records stay for the next one.
    pub(crate) async fn stop(mut self) -> Stopped {
        self.server.shutdown_gracefully().await.unwrap();
        Stopped { address: self.address, zone: self.zone }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.zone.0.lock().unwrap()
    }

    /// Sets the addresses of a name. Without any the name has no records of the family of the last ones.
    pub(crate) fn set(&self, name: &str, ttl: u32, addresses: &[&str]) {
        let mut state = self.state();
        let name = Name::from_ascii(name).unwrap();
        state.records.remove(&(name.clone(), RecordType::A));
        state.records.remove(&(name.clone(), RecordType::AAAA));
        for address in addresses {
            let data = RData::from(address.parse::<IpAddr>().unwrap());
            let record = Record::from_rdata(name.clone(), ttl, data);
            state.records.entry((name.clone(), record.record_type())).or_default().push(record);
        }
    }

    /// Sets the SRV records of a name: priority, weight, port, target.
    pub(crate) fn set_srv(&self, name: &str, targets: &[(u16, u16, u16, &str)]) {
        let name = Name::from_ascii(name).unwrap();
        let record = |(priority, weight, port, target): &(u16, u16, u16, &str)| {
            let srv = SRV::new(*priority, *weight, *port, Name::from_ascii(target).unwrap());
            Record::from_rdata(name.clone(), 0, RData::SRV(srv))
        };
        let records = targets.iter().map(record).collect();
        self.state().records.insert((name.clone(), RecordType::SRV), records);
    }

    /// Makes a name the alias of another, with the addresses of that in the same answer.
    pub(crate) fn set_alias(&self, name: &str, ttl: u32, of: &str) {
        let (name, of) = (Name::from_ascii(name).unwrap(), Name::from_ascii(of).unwrap());
        let mut state = self.state();
        for kind in [RecordType::A, RecordType::AAAA] {
            let mut records = vec![Record::from_rdata(name.clone(), ttl, RData::CNAME(CNAME(of.clone())))];
            records.extend(state.records.get(&(of.clone(), kind)).cloned().unwrap_or_default());
            state.records.insert((name.clone(), kind), records);
        }
    }

    /// Makes questions of one type fail.
    pub(crate) fn trouble(&self, kind: RecordType, trouble: Option<Trouble>) {
        let mut state = self.state();
        match trouble {
            Some(trouble) => state.troubles.insert(kind, trouble),
            None => state.troubles.remove(&kind),
        };
    }

    pub(crate) fn questions(&self) -> Vec<Question> {
        self.state().questions.clone()
    }
}

/// A server that was stopped.
pub(crate) struct Stopped {
    address: SocketAddr,
    zone: Zone,
}

impl Stopped {
    pub(crate) async fn start(self) -> DnsServer {
        DnsServer::start_at(self.address, self.zone).await.unwrap()
    }
}

#[async_trait]
impl RequestHandler for Zone {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut out: R,
    ) -> ResponseInfo {
        let metadata = Metadata::response_from_request(&request.metadata);
        let info = request.request_info().unwrap();
        let name = Name::from(info.query.name().clone());
        let kind = info.query.query_type();
        let is_tcp = info.protocol == Protocol::Tcp;
        let (trouble, records, is_known) = {
            let mut state = self.0.lock().unwrap();
            state.questions.push(Question { name: name.to_string(), kind, is_tcp, at: Instant::now() });
            let records = state.records.get(&(name.clone(), kind)).cloned().unwrap_or_default();
            let is_known = state.records.keys().any(|(known, _)| *known == name);
            (state.troubles.get(&kind).copied(), records, is_known)
        };
        let builder = MessageResponseBuilder::from_message_request(request);
        let mut metadata = metadata;
        let sent = match trouble {
            Some(Trouble::Silence) => {
                return ResponseInfo::from(Header { metadata, counts: HeaderCounts::default() });
            }
            Some(Trouble::ServFail) => {
                out.send_response(builder.error_msg(&request.metadata, ResponseCode::ServFail)).await
            }
            None => {
                metadata.authoritative = true;
                let soa = SOA::new(Name::root(), Name::root(), 1, 60, 60, 60, 0);
                let soa = Record::from_rdata(Name::root(), 0, RData::SOA(soa));
                if records.is_empty() && !is_known {
                    metadata.response_code = ResponseCode::NXDomain;
                }
                let soa = records.is_empty().then_some(&soa);
                let none = || std::iter::empty::<&Record>();
                out.send_response(builder.build(metadata, &records, none(), soa, none())).await
            }
        };
        sent.unwrap()
    }
}
