package sandbox

// hostName is every sandbox's.
const hostName = "sandbox"

// hostsText is a sandbox's /etc/hosts. The engine's own would tell it the
// host's address.
const hostsText = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.0.1\t" + hostName + "\n"

// resolvText is a sandbox's /etc/resolv.conf: a look-up inside fails at once,
// and the host's name servers and search domains stay unknown.
const resolvText = "# The proxy resolves names, outside; there is no name server in here.\noptions timeout:1 attempts:1\n"
