/* SPDX-License-Identifier: Apache-2.0 */
/* The wire gate with every field wrong, descriptor passing, and the seqlock under a writer. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

#include "proto/fdpass.h"
#include "proto/shared.h"
#include "proto/wire.h"

static struct wire_packet packet;

static void build(uint16_t type, uint32_t flags, const void *body, size_t body_bytes,
		  const char *text)
{
	struct wire_header header = {.type = type, .flags = flags, .tag = 7};

	assert_int_equal(wire_build(&packet, &header, body, body_bytes, text, text ? strlen(text) : 0),
			 0);
}

static int check(enum wire_direction direction, unsigned n_fds)
{
	struct wire_message message;
	uint8_t before[sizeof(message)];
	int r;

	memset(&message, 0x5a, sizeof(message));
	memcpy(before, &message, sizeof(message));
	r = wire_check(direction, packet.bytes, packet.n_bytes, n_fds, &message);
	if (r != 0)
		assert_memory_equal(before, &message, sizeof(message)); /* untouched on failure */
	return r;
}

static void poke(size_t offset, uint32_t value)
{
	memcpy(packet.bytes + offset, &value, sizeof(value));
}

/* Every type, right and then with a byte less, a byte more, and a descriptor too many. */
static void test_sizes(void **state)
{
	struct wire_acquire acquire = {.n_pages = 1};
	struct wire_acquire_reply acquired = {.lease = 1, .n_pages = 1};
	uint8_t zeros[64] = {0};
	struct wire_attach attach = {.name_bytes = 1};
	const struct {
		uint16_t type;
		enum wire_direction direction;
		const void *body;
		size_t body_bytes;
		const char *text;
		unsigned n_fds;
	} cases[] = {
		{WIRE_HELLO, WIRE_REQUEST, zeros, 24},	 {WIRE_ATTACH, WIRE_REQUEST, &attach, 8, "m"},
		{WIRE_SEGMENT, WIRE_REQUEST, zeros, 16}, {WIRE_CHUNK, WIRE_REQUEST, zeros, 16},
		{WIRE_ACQUIRE, WIRE_REQUEST, &acquire, 32}, {WIRE_PREFETCH, WIRE_REQUEST, &acquire, 32},
		{WIRE_RELEASE, WIRE_REQUEST, zeros, 8},	 {WIRE_CHUNK_ACK, WIRE_REQUEST, zeros, 16},
		{WIRE_DETACH, WIRE_REQUEST, zeros, 8},	 {WIRE_FILE, WIRE_REQUEST, zeros, 16},
		{WIRE_HELLO, WIRE_REPLY, zeros, 24},	 {WIRE_ATTACH, WIRE_REPLY, zeros, 56, NULL, 2},
		{WIRE_SEGMENT, WIRE_REPLY, zeros, 16, NULL, 1},
		{WIRE_CHUNK, WIRE_REPLY, zeros, 16, NULL, 1},
		{WIRE_FILE, WIRE_REPLY, zeros, 16, NULL, 1},
		{WIRE_SHARE, WIRE_REQUEST, zeros, 16},
		{WIRE_SHARE, WIRE_REPLY, zeros, 16, NULL, 1},
		{WIRE_ACQUIRE, WIRE_REPLY, &acquired, 48},
		{WIRE_JSON, WIRE_REQUEST, NULL, 0, "{}"}, {WIRE_JSON, WIRE_REPLY, NULL, 0, "{}"},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		uint32_t flags = cases[i].direction == WIRE_REPLY ? WIRE_FLAG_REPLY : 0;
		enum wire_direction other = cases[i].direction == WIRE_REPLY ? WIRE_REQUEST : WIRE_REPLY;
		uint32_t payload;

		build(cases[i].type, flags, cases[i].body, cases[i].body_bytes, cases[i].text);
		assert_int_equal(check(cases[i].direction, cases[i].n_fds), 0);
		assert_int_equal(check(other, cases[i].n_fds), WIRE_E_PROTOCOL);
		assert_int_equal(check(cases[i].direction, cases[i].n_fds + 1), WIRE_E_PROTOCOL);
		if (cases[i].n_fds)
			assert_int_equal(check(cases[i].direction, cases[i].n_fds - 1),
					 WIRE_E_PROTOCOL);
		packet.n_bytes--; /* cut: the header says more */
		assert_int_equal(check(cases[i].direction, cases[i].n_fds), WIRE_E_PROTOCOL);
		packet.n_bytes += 2;
		assert_int_equal(check(cases[i].direction, cases[i].n_fds), WIRE_E_PROTOCOL);
		if (cases[i].type == WIRE_JSON)
			continue;
		packet.n_bytes -= 2; /* a shorter payload that says so */
		payload = (uint32_t)(packet.n_bytes - sizeof(struct wire_header));
		poke(offsetof(struct wire_header, payload_bytes), payload);
		assert_int_equal(check(cases[i].direction, cases[i].n_fds), WIRE_E_PROTOCOL);
		packet.n_bytes += 2; /* and a longer one */
		poke(offsetof(struct wire_header, payload_bytes), payload + 2);
		assert_int_equal(check(cases[i].direction, cases[i].n_fds), WIRE_E_PROTOCOL);
	}
	for (size_t n = 0; n < sizeof(struct wire_header); n++) {
		packet.n_bytes = n;
		assert_int_equal(check(WIRE_REQUEST, 0), WIRE_E_PROTOCOL);
	}
}

static void test_header(void **state)
{
	struct wire_release release = {.lease = 1};

	build(WIRE_RELEASE, 0, &release, sizeof(release), NULL);
	packet.bytes[0] ^= 1;
	assert_int_equal(check(WIRE_REQUEST, 0), WIRE_E_PROTOCOL);
	build(0, 0, &release, sizeof(release), NULL);
	assert_int_equal(check(WIRE_REQUEST, 0), WIRE_E_PROTOCOL);
	build(12, 0, &release, sizeof(release), NULL);
	assert_int_equal(check(WIRE_REQUEST, 0), WIRE_E_PROTOCOL);
	build(65535, 0, &release, sizeof(release), NULL);
	assert_int_equal(check(WIRE_REQUEST, 0), WIRE_E_PROTOCOL);
	build(WIRE_RELEASE, 0, &release, sizeof(release), NULL);
	poke(offsetof(struct wire_header, status), 1);
	assert_int_equal(check(WIRE_REQUEST, 0), WIRE_E_PROTOCOL);
	for (unsigned bit = 0; bit < 32; bit++) {
		build(WIRE_RELEASE, 1U << bit, &release, sizeof(release), NULL);
		assert_int_equal(check(WIRE_REQUEST, 0), WIRE_E_PROTOCOL);
	}
	/* A reply nobody defines, and flags that only JSON has. */
	build(WIRE_RELEASE, WIRE_FLAG_REPLY, &release, sizeof(release), NULL);
	assert_int_equal(check(WIRE_REPLY, 0), WIRE_E_PROTOCOL);
	build(WIRE_JSON, WIRE_FLAG_REPLY | WIRE_FLAG_IN_MEMFD, NULL, 0, NULL);
	assert_int_equal(check(WIRE_REPLY, 1), 0);
	assert_int_equal(check(WIRE_REPLY, 0), WIRE_E_PROTOCOL);
	build(WIRE_JSON, WIRE_FLAG_REPLY | WIRE_FLAG_IN_MEMFD, NULL, 0, "{}");
	assert_int_equal(check(WIRE_REPLY, 1), WIRE_E_PROTOCOL);
	build(WIRE_JSON, WIRE_FLAG_REPLY | 4, NULL, 0, "{}");
	assert_int_equal(check(WIRE_REPLY, 0), WIRE_E_PROTOCOL);
}

static void test_bodies(void **state)
{
	struct wire_hello hello = {.protocol = 1, .reserved = 1};
	struct wire_attach attach = {.name_bytes = 2};
	struct wire_segment segment = {.reserved = 1};
	struct wire_acquire acquire = {.n_pages = 0};
	struct wire_acquire_reply good = {.lease = 1, .n_pages = 1, .offset = 64}, bad;

	build(WIRE_HELLO, 0, &hello, sizeof(hello), NULL);
	assert_int_equal(check(WIRE_REQUEST, 0), WIRE_E_PROTOCOL);
	hello = (struct wire_hello){.protocol = 1, .instance = 1};
	build(WIRE_HELLO, 0, &hello, sizeof(hello), NULL);
	assert_int_equal(check(WIRE_REQUEST, 0), WIRE_E_PROTOCOL);
	build(WIRE_HELLO, WIRE_FLAG_REPLY, &hello, sizeof(hello), NULL);
	assert_int_equal(check(WIRE_REPLY, 0), 0);
	build(WIRE_ATTACH, 0, &attach, sizeof(attach), "abc");
	assert_int_equal(check(WIRE_REQUEST, 0), WIRE_E_PROTOCOL);
	build(WIRE_ATTACH, 0, &attach, sizeof(attach), "/b");
	assert_int_equal(check(WIRE_REQUEST, 0), WIRE_E_PROTOCOL);
	attach.reserved = 1;
	build(WIRE_ATTACH, 0, &attach, sizeof(attach), "ab");
	assert_int_equal(check(WIRE_REQUEST, 0), WIRE_E_PROTOCOL);
	build(WIRE_CHUNK, 0, &segment, sizeof(segment), NULL);
	assert_int_equal(check(WIRE_REQUEST, 0), WIRE_E_PROTOCOL);
	build(WIRE_ACQUIRE, 0, &acquire, sizeof(acquire), NULL);
	assert_int_equal(check(WIRE_REQUEST, 0), WIRE_E_PROTOCOL);
	build(WIRE_ACQUIRE, WIRE_FLAG_REPLY, &good, sizeof(good), NULL);
	assert_int_equal(check(WIRE_REPLY, 0), 0);
	bad = good, bad.lease = 0;
	build(WIRE_ACQUIRE, WIRE_FLAG_REPLY, &bad, sizeof(bad), NULL);
	assert_int_equal(check(WIRE_REPLY, 0), WIRE_E_PROTOCOL);
	bad = good, bad.offset = 32;
	build(WIRE_ACQUIRE, WIRE_FLAG_REPLY, &bad, sizeof(bad), NULL);
	assert_int_equal(check(WIRE_REPLY, 0), WIRE_E_PROTOCOL);
	bad = good, bad.reserved = 1;
	build(WIRE_ACQUIRE, WIRE_FLAG_REPLY, &bad, sizeof(bad), NULL);
	assert_int_equal(check(WIRE_REPLY, 0), WIRE_E_PROTOCOL);
	build(WIRE_JSON, 0, NULL, 0, NULL);
	assert_int_equal(check(WIRE_REQUEST, 0), WIRE_E_PROTOCOL);
}

static void test_failures(void **state)
{
	struct wire_header header = {.type = WIRE_ATTACH, .flags = WIRE_FLAG_REPLY, .status = 1};
	struct wire_message message;

	assert_int_equal(wire_build(&packet, &header, NULL, 0, "no such model", 13), 0);
	assert_int_equal(wire_check(WIRE_REPLY, packet.bytes, packet.n_bytes, 0, &message), 0);
	assert_int_equal(message.text_bytes, 13);
	assert_memory_equal(message.text, "no such model", 13);
	assert_int_equal(check(WIRE_REPLY, 2), WIRE_E_PROTOCOL);
	poke(offsetof(struct wire_header, status), 65536);
	assert_int_equal(check(WIRE_REPLY, 0), WIRE_E_PROTOCOL);
	poke(offsetof(struct wire_header, status), UINT32_MAX);
	assert_int_equal(check(WIRE_REPLY, 0), WIRE_E_PROTOCOL);
	assert_int_equal(wire_result_of(wire_status_of(-ENOMEM)), -ENOMEM);
	assert_int_equal(wire_result_of(wire_status_of(7)), 7);
	assert_int_equal(wire_status_of(0), 0);
	assert_int_equal(wire_build(&packet, &header, NULL, 0, "", WIRE_MAX_PAYLOAD + 1), -EMSGSIZE);
}

static void test_names(void **state)
{
	char longest[WIRE_MAX_NAME + 1];

	memset(longest, 'a', sizeof(longest));
	assert_true(wire_name_is_valid("llama-3.1_8B", 12));
	assert_true(wire_name_is_valid(longest, WIRE_MAX_NAME));
	assert_false(wire_name_is_valid(longest, WIRE_MAX_NAME + 1));
	assert_false(wire_name_is_valid("", 0));
	assert_false(wire_name_is_valid(".a", 2));
	assert_false(wire_name_is_valid("-a", 2));
	assert_false(wire_name_is_valid("a/b", 3));
	assert_false(wire_name_is_valid("a\0b", 3));
	assert_false(wire_name_is_valid("\xc3\xa4", 2));
}

static unsigned count_fds(void)
{
	unsigned n = 0;

	for (int fd = 0; fd < 256; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

static void test_fdpass(void **state)
{
	int pair[2], sent[6], got[FDPASS_MAX];
	unsigned n_fds, before;
	char bytes[16];
	size_t n_bytes;

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	for (unsigned i = 0; i < 6; i++)
		sent[i] = pair[0];
	before = count_fds();
	assert_int_equal(fdpass_recv(pair[1], bytes, sizeof(bytes), got, &n_bytes, &n_fds), -EAGAIN);
	assert_int_equal(fdpass_send(pair[0], "hello", 5, sent, 2), 0);
	assert_int_equal(fdpass_recv(pair[1], bytes, sizeof(bytes), got, &n_bytes, &n_fds), 0);
	assert_int_equal(n_bytes, 5);
	assert_int_equal(n_fds, 2);
	assert_true(fcntl(got[0], F_GETFD) & FD_CLOEXEC);
	close(got[0]);
	close(got[1]);
	/* A packet that does not fit, with descriptors: refused, nothing stays open. */
	assert_int_equal(fdpass_send(pair[0], "a packet of more than 16", 24, sent, 2), 0);
	assert_int_equal(fdpass_recv(pair[1], bytes, sizeof(bytes), got, &n_bytes, &n_fds), -EPROTO);
	assert_int_equal(count_fds(), before);
	close(pair[0]);
	assert_int_equal(fdpass_recv(pair[1], bytes, sizeof(bytes), got, &n_bytes, &n_fds),
			 -ECONNRESET);
	assert_true(fdpass_send(pair[1], "x", 1, NULL, 0) == -EPIPE); /* and no SIGPIPE */
	close(pair[1]);
}

/* More descriptors than a packet may have: sent past fdpass_send(), which has no room for them. */
static void test_fdpass_too_many(void **state)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(9 * sizeof(int))];
	} control = {0};
	char byte = 'x';
	struct iovec iov = {&byte, 1};
	struct msghdr message = {.msg_iov = &iov,
				 .msg_iovlen = 1,
				 .msg_control = &control,
				 .msg_controllen = sizeof(control)};
	int pair[2], fds[9], got[FDPASS_MAX];
	unsigned n_fds, before;
	size_t n_bytes;

	/* qemu-user drops the MSG_CTRUNC of the kernel (linux-user/syscall.c overwrites the flag
	 * that it just set), so nothing under it can see a cut-off list. */
	if (getenv("MESON_EXE_WRAPPER"))
		skip();
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), 0);
	before = count_fds();
	for (unsigned i = 0; i < 9; i++)
		fds[i] = pair[0];
	control.align.cmsg_level = SOL_SOCKET;
	control.align.cmsg_type = SCM_RIGHTS;
	control.align.cmsg_len = CMSG_LEN(sizeof(fds));
	memcpy(CMSG_DATA(&control.align), fds, sizeof(fds));
	assert_int_equal(sendmsg(pair[0], &message, 0), 1);
	assert_int_equal(fdpass_recv(pair[1], &byte, 1, got, &n_bytes, &n_fds), -EPROTO);
	assert_int_equal(count_fds(), before);
	close(pair[0]);
	close(pair[1]);
}

static struct shm_placement record;

static void *write_records(void *data)
{
	for (uint32_t i = 1; i <= 100000; i++) {
		struct shm_placement value = {.generation = i,
					      .segment = i,
					      .offset = i,
					      .stored_bytes = i,
					      .page_record = i,
					      .pages_segment = i};

		shared_placement_write(&record, &value);
	}
	return NULL;
}

static void test_seqlock(void **state)
{
	struct shm_placement value = {0};
	pthread_t writer;

	assert_int_equal(pthread_create(&writer, NULL, write_records, NULL), 0);
	while (value.generation < 100000) {
		if (!shared_placement_read(&record, &value))
			continue;
		assert_true(value.offset == value.generation && value.segment == value.generation &&
			    value.stored_bytes == value.generation &&
			    value.page_record == value.generation &&
			    value.pages_segment == value.generation);
	}
	pthread_join(writer, NULL);
	/* A writer that died in the middle. */
	shared_store_release(&record.sequence, record.sequence + 1);
	assert_false(shared_placement_read(&record, &value));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_sizes),	 cmocka_unit_test(test_header),
		cmocka_unit_test(test_bodies),	 cmocka_unit_test(test_failures),
		cmocka_unit_test(test_names),	 cmocka_unit_test(test_fdpass),
		cmocka_unit_test(test_fdpass_too_many), cmocka_unit_test(test_seqlock),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
