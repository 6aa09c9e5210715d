/* SPDX-License-Identifier: Apache-2.0 */
/*
 * systemd: socket activation and sd_notify. Refuses descriptors that it cannot name. Main thread;
 * telling never blocks, because systemd's socket drops what it has no room for.
 */
#include "daemon/notify.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <systemd/sd-daemon.h>

#include "base/message.h"

static void notify_free_names(char **names, int n)
{
	for (int i = 0; i < n && names; i++)
		free(names[i]);
	free(names);
}

int notify_listen_fds(int *ret_control, int *ret_text)
{
	char **names = NULL;
	int control = -1, text = -1, r = 0, n = sd_listen_fds_with_names(1, &names);

	if (n < 0)
		return message_set(n, "cannot take the sockets of the service manager: %s",
				   strerror(-n));
	for (int i = 0; i < n && !r; i++) {
		int fd = SD_LISTEN_FDS_START + i, type = 0;

		if (!strcmp(names[i], "control")) {
			control = fd;
			type = SOCK_SEQPACKET;
		} else if (!strcmp(names[i], "text")) {
			text = fd;
			type = SOCK_STREAM;
		}
		if (!type || sd_is_socket_unix(fd, type, 1, NULL, 0) <= 0)
			r = message_set(-EINVAL,
					"socket \"%s\" from the service manager is not the listening "
					"SEQPACKET socket \"control\" or the STREAM socket \"text\"",
					names[i]);
	}
	notify_free_names(names, n);
	if (r < 0)
		return r;
	*ret_control = control;
	*ret_text = text;
	return 0;
}

void notify_send(const char *state)
{
	(void)sd_notify(0, state);
}

uint64_t notify_watchdog_ns(void)
{
	uint64_t usec;

	return sd_watchdog_enabled(0, &usec) > 0 ? usec * 1000 / 3 : 0;
}
