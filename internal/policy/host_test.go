package policy

import "testing"

func TestParseHost(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"Example.COM": "example.com", "example.com.": "example.com", "a_b-c.example": "a_b-c.example",
		"localhost": "localhost", "xn--bcher-kva.example": "xn--bcher-kva.example",
		"1.2.3.4": "1.2.3.4", "::1": "::1", "::ffff:1.2.3.4": "1.2.3.4", "0x.example": "0x.example",
	} {
		name, addr, err := ParseHost(in)
		got := name
		if addr.IsValid() {
			got = addr.String()
		}
		if err != nil || got != want {
			t.Errorf("ParseHost(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
	for _, in := range []string{
		"", ".", "..", "a..b", "-.", "-a.example", "--version", "127.1", "2130706433", "0x7f.1", "0x7f000001", "0177.0.0.1", "1.2.3.4.", "1.2.3.256", "010.0.0.1",
		"fe80::1%lo", "a b", "a/b", "a@b", "a\x00b", "a%00b", "bücher.example", "[::1]", "*", "*.example.com", "example.0x1f",
	} {
		if name, addr, err := ParseHost(in); err == nil {
			t.Errorf("ParseHost(%q) = %q, %v; want an error", in, name, addr)
		}
	}
}

func TestParsePort(t *testing.T) {
	t.Parallel()
	for _, in := range []string{"", "0", "00", "080", "+80", "-1", "65536", "99999999999999999999", "http", "80 ", "8_0", "0x50"} {
		if p, err := ParsePort(in); err == nil {
			t.Errorf("ParsePort(%q) = %d, want an error", in, p)
		}
	}
	for _, in := range []string{"1", "80", "65535"} {
		if _, err := ParsePort(in); err != nil {
			t.Errorf("ParsePort(%q): %v", in, err)
		}
	}
}
