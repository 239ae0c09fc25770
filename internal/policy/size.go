package policy

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Bounds of a sandbox's memory in bytes. Below MinMemory not even the init
// process starts.
const (
	MinMemory = 32 << 20
	MaxMemory = 16 << 40
)

// Bounds of a sandbox's CPUs in billionths of one.
const (
	MinNanoCPUs = 1e7  // 0.01 CPU, the kernel's smallest quota
	MaxNanoCPUs = 1e12 // 1,000 CPUs
)

// ParseSize reads a size as container engines write it, such as "512m", "1.5g"
// or "1073741824", in bytes; units are powers of 1,024. The error is a sentence
// for the caller.
func ParseSize(s string) (int64, error) {
	wrong := fmt.Errorf("%s is not a size such as 512m or 2g", quote(s))
	if len(s) > 32 {
		return 0, wrong
	}
	digits := s[:len(s)-len(strings.TrimLeft(s, "0123456789."))]
	unit := strings.ToLower(s[len(digits):])
	n, err := decimal(digits)
	if err != nil {
		return 0, wrong
	}
	shift, ok := map[string]int{"": 0, "b": 0, "k": 10, "m": 20, "g": 30, "t": 40}[strings.TrimSuffix(strings.TrimSuffix(unit, "b"), "i")]
	if !ok || unit == "i" || unit == "ib" || unit == "bb" {
		return 0, wrong
	}
	n *= math.Pow(2, float64(shift))
	if n > math.MaxInt64/2 {
		return 0, fmt.Errorf("%s is too large", quote(s))
	}
	return int64(n), nil
}

// ParseCPUs reads a decimal number of CPUs such as "0.5" as billionths of a
// CPU. The error is a sentence for the caller.
func ParseCPUs(s string) (int64, error) {
	n, err := decimal(s)
	if err != nil {
		return 0, fmt.Errorf("%s is not a decimal number of CPUs such as 0.5", quote(s))
	}
	nano := math.Round(n * 1e9)
	if nano < MinNanoCPUs || nano > MaxNanoCPUs {
		return 0, fmt.Errorf("%s is out of range; it must be between 0.01 and 1000", quote(s))
	}
	return int64(nano), nil
}

// decimal reads digits with at most one point between them: no sign, exponent,
// "Inf" or hexadecimal, which strconv would take.
func decimal(s string) (float64, error) {
	whole, fraction, point := strings.Cut(s, ".")
	if len(s) > 32 || !digitsOnly(whole) || point && !digitsOnly(fraction) {
		return 0, errors.New("not a decimal number")
	}
	return strconv.ParseFloat(s, 64)
}

func digitsOnly(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}
