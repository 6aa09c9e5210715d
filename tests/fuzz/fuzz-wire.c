/* SPDX-License-Identifier: Apache-2.0 */
/* Packets of the control socket: byte 0 says which direction and how many descriptors came along. */
#include <string.h>

#include "dcmem/wire.h"
#include "fuzz/fuzz.h"
#include "proto/wire.h"

void fuzz_one(const uint8_t *data, size_t n_bytes)
{
	struct wire_message message;

	if (n_bytes < 1)
		return;
	(void)wire_check(data[0] & 1 ? WIRE_REPLY : WIRE_REQUEST, data + 1, n_bytes - 1, data[0] >> 1,
			 &message);
	(void)wire_name_is_valid((const char *)data + 1, n_bytes - 1);
}

/* A header of each kind, in both directions. */
size_t fuzz_seed(unsigned i, uint8_t *buffer, size_t capacity)
{
	static const size_t bodies[] = {8, 16, 24, 32, 48, 56};
	struct wire_header header = {.magic = WIRE_MAGIC, .type = (uint16_t)(i / 2 % 20)};
	size_t n = sizeof(header) + bodies[i % 6];

	if (i >= 60 || n + 1 > capacity)
		return 0;
	header.payload_bytes = (uint32_t)(n - sizeof(header));
	memset(buffer, 1, n + 1);
	buffer[0] = (uint8_t)(i & 1);
	memcpy(buffer + 1, &header, sizeof(header));
	return n + 1;
}

/* The length is right more often than chance would have it. */
void fuzz_mend(uint8_t *data, size_t n_bytes)
{
	struct wire_header header;

	if (n_bytes < 1 + sizeof(header))
		return;
	memcpy(&header, data + 1, sizeof(header));
	header.magic = WIRE_MAGIC;
	header.payload_bytes = (uint32_t)(n_bytes - 1 - sizeof(header));
	memcpy(data + 1, &header, sizeof(header));
}
