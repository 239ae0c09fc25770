package stromboli

// MaxBindings bounds the bindings of a run.
const MaxBindings = 20

// BindingScheme says how a secret is shown to a host.
type BindingScheme string

// The schemes.
const (
	// BindingBasic: "Authorization: Basic". The secret is user:password or, with
	// Binding.Username or without a colon, the password alone.
	BindingBasic BindingScheme = "basic"
	// BindingBearer: "Authorization: Bearer".
	BindingBearer BindingScheme = "bearer"
	// BindingHeader: the header that Binding.Header names.
	BindingHeader BindingScheme = "header"
)

// BindingUser is the user of a basic binding whose secret is a password alone:
// what GitHub wants with tokens of its apps, and other forges take with theirs.
const BindingUser = "x-access-token"

// Binding has a secret put on requests to a host, outside of the sandbox.
type Binding struct {
	// Host is a name, with a port where it isn't 443.
	Host string `json:"host"`
	// Secret is the name of one of the tenant's secrets.
	Secret string `json:"secret"`
	// Scheme: basic, bearer or header.
	Scheme BindingScheme `json:"scheme"`
	// Username, with the scheme basic: the secret is this user's password.
	Username string `json:"username,omitempty"`
	// Header, with the scheme header, is the header's name.
	Header string `json:"header,omitempty"`
}
